// The only way that data reaches this server's disk, and the seam where tests inject faults.
//
// Commit order everywhere: write, fsync(file), rename, fsync(directory). Short writes are continued
// and EINTR retried. A failed fsync is final: Linux drops the error once it has told it, so trying
// again could report success for data that is lost (https://wiki.postgresql.org/wiki/Fsync_Errors).
// Messages name the file, never the directory it lies in.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

// The system calls behind this header. Tests replace single ones; everybody else leaves them alone.
struct FileCalls {
  ssize_t (*pwrite)(int fd, const void* data, size_t bytes, off_t offset);
  int (*fsync)(int fd);
  int (*rename)(const char* from, const char* to);
};
FileCalls& ActiveFileCalls();

// What an errno means to a caller. ENOSPC and EDQUOT: ResourceExhausted OUT_OF_DISK; ENOENT:
// NotFound; anything else: Internal IO_ERROR. `file` is shown by its last component.
absl::Status IoError(int error, std::string_view doing, const std::filesystem::path& file);

// A new file being written. Not thread-safe. Closed, not synced, by the destructor.
class OutputFile {
 public:
  // Fails if `path` exists; follows no link.
  static absl::StatusOr<OutputFile> Create(const std::filesystem::path& path);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  absl::Status WriteAt(int64_t offset, absl::Span<const uint8_t> data);
  // Durable when it returns OK. After a failure every later call fails as well.
  absl::Status Sync();

 private:
  OutputFile(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}

  int fd_;
  std::filesystem::path path_;
  bool broken_ = false;
};

// Writes `data` to a sibling file, syncs it, renames it onto `path` and syncs the directory.
absl::Status WriteFileDurably(const std::filesystem::path& path, std::string_view data);
// Syncs a file that somebody else has written.
absl::Status SyncFile(const std::filesystem::path& path);
absl::Status SyncDirectory(const std::filesystem::path& path);
// rename(), then both parents synced.
absl::Status RenameDurably(const std::filesystem::path& from, const std::filesystem::path& to);

// ResourceExhausted if the file is larger than `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, int64_t max_bytes);

// A file mapped read-only. Only for files of our own data directory, which nobody else changes.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  const uint8_t* data_;
  size_t size_;
};

}  // namespace babai
