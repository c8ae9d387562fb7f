// How this folder says no: one spelling for every complaint about a model file.
// Names that come out of a file are shortened and cleaned before they are repeated.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace babai {

// `name` in single quotes, at most 96 bytes of it, unprintable bytes as '?'.
std::string Quoted(std::string_view name);

// INVALID_ARGUMENT, INVALID_MODEL_FILE; field "config.json" or "model.safetensors: tensor 'x'".
absl::Status BadFile(std::string_view file, std::string_view message);
absl::Status BadTensor(std::string_view file, std::string_view tensor, std::string_view message);

// INVALID_ARGUMENT, UNSUPPORTED_FORMAT: well formed, but nothing here reads it.
absl::Status UnsupportedFile(std::string_view file, std::string_view message);
absl::Status UnsupportedTensor(std::string_view file, std::string_view tensor,
                               std::string_view message);

// INVALID_ARGUMENT, UNSUPPORTED_ARCHITECTURE.
absl::Status UnsupportedModel(std::string_view file, std::string_view message);

}  // namespace babai
