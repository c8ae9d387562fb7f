#include "server/store/catalog.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "server/reason/reason.h"
#include "server/store/file.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifestBytes = 256 << 20;

absl::Status CreatePrivateDirectory(const fs::path& path) {
  std::error_code error;
  const bool created = fs::create_directories(path, error);
  if (error) return IoError(error.value(), "creating", path);
  if (created) fs::permissions(path, fs::perms::owner_all, error);
  return error ? IoError(error.value(), "protecting", path) : absl::OkStatus();
}

absl::Status RemoveEverythingIn(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    fs::remove_all(entry.path(), error);
    if (error) return IoError(error.value(), "removing", entry.path());
  }
  return error ? IoError(error.value(), "listing", directory) : absl::OkStatus();
}

std::string RandomSuffix() {
  std::random_device device;
  return absl::StrFormat("%08x%08x", device(), device());
}

class DiskCatalog final : public Catalog {
 public:
  DiskCatalog(fs::path data_dir, int lock)
      : models_(data_dir / "models"), tmp_(data_dir / "tmp"), lock_(lock) {}
  ~DiskCatalog() override { ::close(lock_); }

  fs::path ModelDir(std::string_view name) const override { return models_ / name; }

  fs::path NewStagingDir(std::string_view name) const override {
    return tmp_ / (std::string(name) + "-" + RandomSuffix());
  }

  bool Exists(std::string_view name) const override {
    std::error_code error;
    return ValidateModelName(name, "name").ok() &&
           fs::is_regular_file(ModelDir(name) / "manifest.json", error);
  }

  absl::StatusOr<Manifest> ReadManifest(std::string_view name) const override {
    if (!Exists(name)) return NotFound(name);
    const auto text = ReadFile(ModelDir(name) / "manifest.json", kMaxManifestBytes);
    // It may have been deleted since it was seen.
    if (absl::IsNotFound(text.status())) return NotFound(name);
    if (!text.ok()) return text.status();
    return ManifestFromJson(*text);
  }

  int64_t StoredBytes(std::string_view name) const override {
    if (!Exists(name)) return 0;
    int64_t sum = 0;
    std::error_code error;
    for (const auto& file : fs::recursive_directory_iterator(ModelDir(name), error)) {
      std::error_code gone;  // deleted since it was seen
      const auto bytes = file.is_regular_file(gone) ? file.file_size(gone) : 0;
      if (!gone) sum += static_cast<int64_t>(bytes);
    }
    return sum;
  }

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(models_, error)) {
      const std::string name = entry.path().filename().string();
      if (Exists(name)) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::Status Delete(std::string_view name) override {
    if (!Exists(name)) return NotFound(name);
    const fs::path grave = NewStagingDir(name);
    const auto renamed = RenameDurably(ModelDir(name), grave);
    if (absl::IsNotFound(renamed)) return NotFound(name);  // another call was faster
    if (!renamed.ok()) return renamed;
    std::error_code ignored;  // what stays is removed when the catalog is next opened
    fs::remove_all(grave, ignored);
    return absl::OkStatus();
  }

 private:
  static absl::Status NotFound(std::string_view name) {
    return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, "name",
                  "there is no model named '" + std::string(name.substr(0, 63)) + "'");
  }

  const fs::path models_, tmp_;
  const int lock_;  // held for life: emptying tmp under another server would destroy its work
};

}  // namespace

absl::Status ValidateModelName(std::string_view name, std::string_view field) {
  const auto plain = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c); };
  const bool valid = !name.empty() && name.size() <= 63 && plain(name[0]) &&
                     std::all_of(name.begin(), name.end(), [&](char c) {
                       return plain(c) || c == '.' || c == '_' || c == '-';
                     });
  if (valid) return absl::OkStatus();
  return InvalidField(field, "a model name is 1 to 63 of a-z 0-9 . _ - and begins with a-z or 0-9");
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(const fs::path& data_dir) {
  for (const fs::path& dir : {data_dir, data_dir / "models", data_dir / "tmp"}) {
    if (auto status = CreatePrivateDirectory(dir); !status.ok()) return status;
  }
  const int lock = ::open((data_dir / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock < 0) return IoError(errno, "creating", data_dir / "lock");
  auto catalog = std::make_unique<DiskCatalog>(data_dir, lock);
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kIoError, "data_dir",
                  "is in use by another server");
  }
  if (auto status = RemoveEverythingIn(data_dir / "tmp"); !status.ok()) return status;
  return catalog;
}

}  // namespace babai
