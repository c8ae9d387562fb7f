#include "server/store/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>

#include "server/reason/reason.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

int fsync_calls = 0;

// Puts the real calls back at the end of a test.
class FileTest : public testing::Test {
 protected:
  ~FileTest() override { ActiveFileCalls() = saved_; }
  const FileCalls saved_ = ActiveFileCalls();
  TempDir temp_;
};

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

TEST_F(FileTest, WritesDurablyAndReadsBack) {
  const auto path = temp_.path() / "a";
  ASSERT_TRUE(WriteFileDurably(path, "one").ok());
  ASSERT_TRUE(WriteFileDurably(path, "two").ok());
  EXPECT_EQ(*ReadFile(path, 3), "two");
  EXPECT_EQ(ReadFile(path, 2).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(temp_.path() / "b", 9).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadFile(temp_.path(), 9).ok());
}

TEST_F(FileTest, CreatesNoFileThatExistsAndFollowsNoLink) {
  WriteText(temp_.path() / "a", "x");
  std::filesystem::create_symlink("c", temp_.path() / "b");
  EXPECT_FALSE(OutputFile::Create(temp_.path() / "a").ok());
  EXPECT_FALSE(OutputFile::Create(temp_.path() / "b").ok());
  EXPECT_FALSE(std::filesystem::exists(temp_.path() / "c"));
}

TEST_F(FileTest, ContinuesShortWritesAndInterruptions) {
  static int calls;
  calls = 0;
  ActiveFileCalls().pwrite = [](int fd, const void* data, size_t bytes, off_t offset) -> ssize_t {
    if (++calls % 2 == 0) {
      errno = EINTR;
      return -1;
    }
    return ::pwrite(fd, data, bytes < 3 ? bytes : 3, offset);
  };
  ASSERT_TRUE(WriteFileDurably(temp_.path() / "a", "a long enough text").ok());
  EXPECT_EQ(*ReadFile(temp_.path() / "a", 100), "a long enough text");
  EXPECT_GT(calls, 6);
}

TEST_F(FileTest, FullDiskIsResourceExhaustedAndLeavesNothing) {
  ActiveFileCalls().pwrite = [](int, const void*, size_t, off_t) -> ssize_t {
    errno = ENOSPC;
    return -1;
  };
  const auto status = WriteFileDurably(temp_.path() / "a", "text");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), reason::kOutOfDisk);
  EXPECT_THAT(std::string(status.message()), testing::Not(testing::HasSubstr("/")));
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path()));
}

TEST_F(FileTest, FailedSyncIsNeverRetried) {
  auto file = OutputFile::Create(temp_.path() / "a");
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->WriteAt(0, Bytes("text")).ok());
  fsync_calls = 0;
  ActiveFileCalls().fsync = [](int) {
    ++fsync_calls;
    errno = EIO;
    return -1;
  };
  EXPECT_EQ(ReasonOf(file->Sync()), reason::kIoError);
  EXPECT_FALSE(file->Sync().ok());
  EXPECT_FALSE(file->WriteAt(0, Bytes("text")).ok());
  EXPECT_EQ(fsync_calls, 1);
}

TEST_F(FileTest, OldContentSurvivesAFailedReplacement) {
  const auto path = temp_.path() / "a";
  ASSERT_TRUE(WriteFileDurably(path, "old").ok());
  ActiveFileCalls().rename = [](const char*, const char*) {
    errno = EIO;
    return -1;
  };
  EXPECT_FALSE(WriteFileDurably(path, "new").ok());
  EXPECT_EQ(*ReadFile(path, 100), "old");
  EXPECT_FALSE(std::filesystem::exists(temp_.path() / "a.partial"));
}

TEST_F(FileTest, MapsFiles) {
  WriteText(temp_.path() / "a", "hello");
  WriteText(temp_.path() / "empty", "");
  const auto mapped = MappedFile::Open(temp_.path() / "a");
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(std::string((*mapped)->bytes().begin(), (*mapped)->bytes().end()), "hello");
  EXPECT_TRUE((*MappedFile::Open(temp_.path() / "empty"))->bytes().empty());
  EXPECT_FALSE(MappedFile::Open(temp_.path()).ok());
}

}  // namespace
}  // namespace babai
