// A file of somebody else's model, opened once and read by position into our own buffers. No memory
// map: a file that shrinks while we read it is an error, not a SIGBUS.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

// Thread-safe; owns its descriptor.
class InputFile {
 public:
  // Opens dir/name, a regular file. With a `root`, the file that symbolic links lead to must lie
  // under it (checked on the open descriptor, so a link can not be swapped afterwards). NotFound
  // SOURCE_NOT_FOUND; PermissionDenied SOURCE_NOT_ALLOWED; InvalidArgument INVALID_MODEL_FILE.
  static absl::StatusOr<InputFile> Open(const std::filesystem::path& dir, std::string_view name,
                                        const std::filesystem::path& root = {});

  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  const std::string& name() const { return name_; }  // relative to the model's folder
  uint64_t size() const { return size_; }            // as it was when opened

  // Fills `out` from `offset`. INVALID_MODEL_FILE: the file ends before; IO_ERROR: the disk failed.
  absl::Status ReadAt(uint64_t offset, absl::Span<char> out) const;

  // The whole file. INVALID_MODEL_FILE: it is larger than `max_bytes`.
  absl::StatusOr<std::string> ReadAll(uint64_t max_bytes) const;

 private:
  InputFile(int fd, std::string name, uint64_t size)
      : fd_(fd), name_(std::move(name)), size_(size) {}

  int fd_ = -1;
  std::string name_;
  uint64_t size_ = 0;
};

}  // namespace babai
