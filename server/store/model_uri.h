// Where a model comes from. A ModelUri can only be made by its parser, and a local path only by
// ResolveLocal(), so no second code path can skip the checks.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

class ModelUri {
 public:
  // "file:///abs/path" or "file:///abs/model.gguf"; also a plain absolute path. Other schemes are
  // refused: Unimplemented NOT_IN_THIS_RELEASE (https, hf, s3) or InvalidArgument INVALID_URI (any
  // other scheme, malformed, a host, percent-encoded dots or slashes, NUL or control characters,
  // "..", over 4096 bytes). `field` is the request's field that holds the text; errors name it.
  static absl::StatusOr<ModelUri> Parse(std::string_view text, std::string_view field = "uri");

  const std::string& text() const { return text_; }            // normalised
  const std::filesystem::path& path() const { return path_; }  // absolute, lexically normal
  const std::string& field() const { return field_; }

 private:
  ModelUri() = default;
  std::string text_;
  std::filesystem::path path_;
  std::string field_;
};

// The real path behind `uri`, proven to lie under one of `roots` after every symbolic link is
// followed (so a link out of the root is refused). PermissionDenied SOURCE_NOT_ALLOWED: outside
// every root, there or not; NotFound SOURCE_NOT_FOUND. Messages show the caller's own URI, never a
// resolved server path. `root`, if given, gets the root it lies under, to confine what a
// directory's own links lead to.
absl::StatusOr<std::filesystem::path> ResolveLocal(const ModelUri& uri,
                                                   const std::vector<std::filesystem::path>& roots,
                                                   std::filesystem::path* root = nullptr);

}  // namespace babai
