// The models of this server's data directory, by name: <data_dir>/models/<name>/ (a packed model).
// The disk is the truth; the catalog keeps nothing of its own.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/packed_model.h"

namespace babai {

// Names: [a-z0-9] then [a-z0-9._-], at most 63 characters. InvalidArgument names `field`.
absl::Status ValidateModelName(std::string_view name, std::string_view field);

// Thread-safe.
class Catalog {
 public:
  // Creates data_dir/models and data_dir/tmp; removes what an interrupted job left in tmp. A data
  // directory serves one process: FailedPrecondition while another catalog has it open.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(const std::filesystem::path& data_dir);
  virtual ~Catalog() = default;

  virtual std::filesystem::path ModelDir(std::string_view name) const = 0;
  virtual std::filesystem::path NewStagingDir(std::string_view name) const = 0;
  virtual bool Exists(std::string_view name) const = 0;
  virtual absl::StatusOr<Manifest> ReadManifest(
      std::string_view name) const = 0;                          // NotFound MODEL_NOT_FOUND
  virtual int64_t StoredBytes(std::string_view name) const = 0;  // of its files; 0: no such model
  virtual std::vector<std::string> Names() const = 0;            // sorted
  // Renames into tmp first, so a half-deleted model is never visible.
  virtual absl::Status Delete(std::string_view name) = 0;
};

}  // namespace babai
