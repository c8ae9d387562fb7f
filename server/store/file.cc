#include "server/store/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "server/reason/reason.h"

namespace babai {
namespace {

// A descriptor that closes itself.
struct Descriptor {
  explicit Descriptor(int fd) : fd(fd) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  int fd;
};

int OpenRetrying(const std::filesystem::path& path, int flags, mode_t mode = 0) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

absl::StatusOr<int64_t> RegularFileSize(int fd, const std::filesystem::path& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return IoError(errno, "reading the size of", path);
  if (!S_ISREG(info.st_mode)) return IoError(EINVAL, "opening", path);
  return info.st_size;
}

absl::Status SyncByPath(const std::filesystem::path& path, int flags) {
  const Descriptor file(OpenRetrying(path, O_RDONLY | flags));
  if (file.fd < 0) return IoError(errno, "opening", path);
  if (ActiveFileCalls().fsync(file.fd) != 0) return IoError(errno, "syncing", path);
  return absl::OkStatus();
}

}  // namespace

FileCalls& ActiveFileCalls() {
  static FileCalls calls = {::pwrite, ::fsync, ::rename};
  return calls;
}

absl::Status IoError(int error, std::string_view doing, const std::filesystem::path& file) {
  const std::string name = file.filename().string();
  const std::string text =
      std::string(doing) + " failed: " + std::generic_category().message(error);
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfDisk, name, text);
    case ENOENT:
      return Refuse(absl::StatusCode::kNotFound, reason::kIoError, name, text);
    default:
      return Refuse(absl::StatusCode::kInternal, reason::kIoError, name, text);
  }
}

absl::StatusOr<OutputFile> OutputFile::Create(const std::filesystem::path& path) {
  const int fd = OpenRetrying(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (fd < 0) return IoError(errno, "creating", path);
  return OutputFile(fd, path);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), broken_(other.broken_) {}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status OutputFile::WriteAt(int64_t offset, absl::Span<const uint8_t> data) {
  if (broken_) return IoError(EIO, "writing", path_);
  while (!data.empty()) {
    const ssize_t n = ActiveFileCalls().pwrite(fd_, data.data(), data.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      broken_ = true;
      return IoError(n < 0 ? errno : EIO, "writing", path_);
    }
    data.remove_prefix(n);
    offset += n;
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Sync() {
  if (broken_) return IoError(EIO, "syncing", path_);
  if (ActiveFileCalls().fsync(fd_) == 0) return absl::OkStatus();
  broken_ = true;
  return IoError(errno, "syncing", path_);
}

absl::Status WriteFileDurably(const std::filesystem::path& path, std::string_view data) {
  std::filesystem::path draft = path;
  draft += ".partial";
  auto write = [&]() -> absl::Status {
    auto file = OutputFile::Create(draft);
    if (!file.ok()) return file.status();
    const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(data.data()),
                                          data.size());
    if (auto status = file->WriteAt(0, bytes); !status.ok()) return status;
    if (auto status = file->Sync(); !status.ok()) return status;
    return RenameDurably(draft, path);
  };
  const absl::Status status = write();
  if (!status.ok()) ::unlink(draft.c_str());
  return status;
}

absl::Status SyncFile(const std::filesystem::path& path) { return SyncByPath(path, O_NOFOLLOW); }

absl::Status SyncDirectory(const std::filesystem::path& path) {
  return SyncByPath(path, O_DIRECTORY);
}

absl::Status RenameDurably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (ActiveFileCalls().rename(from.c_str(), to.c_str()) != 0) {
    return IoError(errno, "renaming", from);
  }
  if (auto status = SyncDirectory(to.parent_path()); !status.ok()) return status;
  if (from.parent_path() == to.parent_path()) return absl::OkStatus();
  return SyncDirectory(from.parent_path());
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, int64_t max_bytes) {
  // O_NONBLOCK: opening a FIFO must not hang before RegularFileSize() refuses it.
  const Descriptor file(OpenRetrying(path, O_RDONLY | O_NONBLOCK));
  if (file.fd < 0) return IoError(errno, "opening", path);
  const auto size = RegularFileSize(file.fd, path);
  if (!size.ok()) return size.status();
  if (*size > max_bytes) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kInvalidField,
                  path.filename().string(),
                  std::to_string(*size) + " bytes, more than the " + std::to_string(max_bytes) +
                      " that are read");
  }
  std::string data(*size, '\0');
  int64_t have = 0;
  while (have < *size) {
    const ssize_t n = ::pread(file.fd, data.data() + have, *size - have, have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError(errno, "reading", path);
    if (n == 0) break;  // it shrank meanwhile: what is there is what is read
    have += n;
  }
  data.resize(have);
  return data;
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::filesystem::path& path) {
  const Descriptor file(OpenRetrying(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  if (file.fd < 0) return IoError(errno, "opening", path);
  const auto size = RegularFileSize(file.fd, path);
  if (!size.ok()) return size.status();
  if (*size == 0) return std::unique_ptr<MappedFile>(new MappedFile(nullptr, 0));
  void* data = ::mmap(nullptr, *size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) return IoError(errno, "mapping", path);
  return std::unique_ptr<MappedFile>(new MappedFile(static_cast<const uint8_t*>(data), *size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace babai
