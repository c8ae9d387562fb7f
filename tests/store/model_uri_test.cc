#include "server/store/model_uri.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "server/reason/reason.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

using testing::HasSubstr;

TEST(ModelUri, NormalisesWhatItAccepts) {
  const std::pair<const char*, const char*> cases[] = {
      {"file:///models/llama", "file:///models/llama"},
      {"FILE:///models/llama", "file:///models/llama"},
      {"/models/llama", "file:///models/llama"},
      {"/models//llama/./", "file:///models/llama"},
      {"file:///models/my%20model", "file:///models/my%20model"},
      {"/models/my model", "file:///models/my%20model"},
      {"/models/a:b.gguf", "file:///models/a:b.gguf"},
      {"/models/100%", "file:///models/100%25"},
      {"/models/..hidden", "file:///models/..hidden"},
      {"file:///models/na%C3%AFve", "file:///models/na%C3%AFve"},
  };
  for (const auto& [text, want] : cases) {
    const auto uri = ModelUri::Parse(text);
    ASSERT_TRUE(uri.ok()) << text << ": " << uri.status();
    EXPECT_EQ(uri->text(), want);
    EXPECT_EQ(ModelUri::Parse(uri->text())->path(), uri->path()) << text;
  }
}

TEST(ModelUri, RefusesMalformedOnes) {
  const std::string bad[] = {"",
                             "model",
                             "./model",
                             "../model",
                             "file:model",
                             "file:../../x",
                             "file:/models/x",
                             "file://host/x",
                             "file://localhost/x",
                             "file://",
                             "//host/x",
                             "file:////host/x",
                             "file:///a/../b",
                             "/a/..",
                             "file:///%2e%2e/etc",
                             "file:///a/%2E%2E/b",
                             "%2e%2e/",
                             "file:///a%2fb",
                             "file:///a%5cb",
                             "file:///a%00b",
                             "file:///a%0ab",
                             "file:///a%",
                             "file:///a%4",
                             "file:///a%zz",
                             "file:///a?x=1",
                             "file:///a#x",
                             "file:///a\\b",
                             "/a\nb",
                             "/a\rb",
                             std::string("/a\0b", 4),
                             "gopher://x",
                             "dict://x",
                             "ftp://x/y",
                             "data:text/plain,x",
                             "unix:/run/x",
                             "http://[::ffff:127.0.0.1]/",
                             "http://169.254.169.254/latest",
                             "http://2130706433/",
                             "http://0x7f.1/",
                             "javascript:x",
                             "/" + std::string(65536, 'a'),
                             "/" + std::string(256, 'a')};
  for (const std::string& text : bad) {
    const auto uri = ModelUri::Parse(text, "source_uri");
    ASSERT_FALSE(uri.ok()) << text;
    EXPECT_EQ(uri.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ReasonOf(uri.status()), reason::kInvalidUri) << text;
    EXPECT_EQ(FieldOf(uri.status()), "source_uri");
  }
}

TEST(ModelUri, SaysWhichSchemesComeLater) {
  for (const char* text :
       {"https://good.host\\@evil/", "HTTPS://x/", "hf://org/repo", "s3://bucket/../x",
        "https://good.host@evil/", "https://evil#good.host"}) {
    const auto uri = ModelUri::Parse(text);
    ASSERT_FALSE(uri.ok());
    if (std::string(text).find('\\') != std::string::npos) continue;  // malformed before all else
    EXPECT_EQ(uri.status().code(), absl::StatusCode::kUnimplemented) << text;
    EXPECT_EQ(ReasonOf(uri.status()), reason::kUnimplemented);
  }
}

class ResolveLocalTest : public testing::Test {
 protected:
  ResolveLocalTest() {
    std::filesystem::create_directories(root() / "llama");
    std::filesystem::create_directories(temp_.path() / "secret");
    WriteText(root() / "model.gguf", "x");
    WriteText(temp_.path() / "secret" / "key", "x");
  }
  std::filesystem::path root() const { return temp_.path() / "root"; }
  absl::StatusOr<std::filesystem::path> Resolve(const std::filesystem::path& path) const {
    return ResolveLocal(*ModelUri::Parse(path.string(), "source_uri"), {root()});
  }

  TempDir temp_;
};

TEST_F(ResolveLocalTest, FindsFilesAndDirectoriesUnderTheRoot) {
  EXPECT_EQ(*Resolve(root() / "llama"), root() / "llama");
  EXPECT_EQ(*Resolve(root() / "model.gguf"), root() / "model.gguf");
  EXPECT_EQ(*Resolve(root()), root());
}

TEST_F(ResolveLocalTest, FollowsLinksThatStayInside) {
  std::filesystem::create_symlink("llama", root() / "link");
  EXPECT_EQ(*Resolve(root() / "link"), root() / "llama");
}

TEST_F(ResolveLocalTest, RefusesLinksThatLeaveTheRoot) {
  std::filesystem::create_directory_symlink(temp_.path() / "secret", root() / "dir");
  std::filesystem::create_symlink("../secret/key", root() / "file");
  for (const char* name : {"dir", "dir/key", "dir/no-such", "file"}) {
    const auto status = Resolve(root() / name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << name;
    EXPECT_EQ(ReasonOf(status), reason::kSourceNotAllowed);
    EXPECT_THAT(std::string(status.message()), testing::Not(HasSubstr("secret")));
  }
}

TEST_F(ResolveLocalTest, AnswersTheSameForWhatIsAndIsNotOutside) {
  const auto present = Resolve(temp_.path() / "secret" / "key").status();
  const auto absent = Resolve(temp_.path() / "secret" / "yek").status();
  EXPECT_EQ(present.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(absent.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Resolve(temp_.path() / "root-of-another").status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ResolveLocal(*ModelUri::Parse("/etc/passwd"), {}).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(ResolveLocalTest, TellsWhatIsMissingOrNotAFile) {
  EXPECT_EQ(ReasonOf(Resolve(root() / "none").status()), reason::kSourceNotFound);
  ASSERT_EQ(mkfifo((root() / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(ReasonOf(Resolve(root() / "pipe").status()), reason::kInvalidUri);
  std::filesystem::create_symlink("loop", root() / "loop");
  EXPECT_FALSE(Resolve(root() / "loop").ok());
}

}  // namespace
}  // namespace babai
