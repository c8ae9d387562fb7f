#include "server/model/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "server/model/refusal.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status OpenFailed(std::string_view name, int error) {
  if (error == ENOENT || error == ENOTDIR) {
    return Refuse(absl::StatusCode::kNotFound, reason::kSourceNotFound, name, "no such file");
  }
  if (error == EACCES || error == EPERM) {
    return Refuse(absl::StatusCode::kPermissionDenied, reason::kSourceNotAllowed, name,
                  "the server may not read this file");
  }
  return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, name,
                "can not be opened: " + std::generic_category().message(error));
}

// Where the descriptor really leads, after every symbolic link.
bool LiesUnder(int fd, const std::filesystem::path& root) {
  std::error_code error;
  const auto real = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), error);
  if (error) return false;
  const auto real_root = std::filesystem::canonical(root, error);
  if (error) return false;
  const auto relative = real.lexically_relative(real_root);
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

absl::StatusOr<InputFile> InputFile::Open(const std::filesystem::path& dir, std::string_view name,
                                          const std::filesystem::path& root) {
  // O_NONBLOCK: a FIFO must not hang the open; it means nothing to a regular file.
  const int fd = open((dir / name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return OpenFailed(name, errno);
  InputFile file(fd, std::string(name), 0);
  struct stat info;
  if (fstat(fd, &info) != 0) return OpenFailed(name, errno);
  if (!S_ISREG(info.st_mode)) return BadFile(name, "is not a regular file");
  if (!root.empty() && !LiesUnder(fd, root)) {
    return Refuse(absl::StatusCode::kPermissionDenied, reason::kSourceNotAllowed, name,
                  "a link leads out of the allowed folder");
  }
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

InputFile::InputFile(InputFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), name_(std::move(other.name_)), size_(other.size_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(name_, other.name_);
  std::swap(size_, other.size_);
  return *this;
}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status InputFile::ReadAt(uint64_t offset, absl::Span<char> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, name_,
                    "read failed: " + std::generic_category().message(errno));
    }
    if (got == 0)
      return BadFile(name_, "ends at byte " + std::to_string(offset + done) +
                                ", before data that it announces");
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> InputFile::ReadAll(uint64_t max_bytes) const {
  if (size_ > max_bytes) {
    return BadFile(
        name_, "is " + std::to_string(size_) + " bytes, the limit is " + std::to_string(max_bytes));
  }
  std::string text(size_, '\0');
  if (const absl::Status read = ReadAt(0, absl::MakeSpan(text)); !read.ok()) return read;
  return text;
}

}  // namespace babai
