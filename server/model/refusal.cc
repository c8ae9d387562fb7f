#include "server/model/refusal.h"

#include "server/reason/reason.h"

namespace babai {
namespace {

std::string TensorField(std::string_view file, std::string_view tensor) {
  return std::string(file) + ": tensor " + Quoted(tensor);
}

absl::Status Invalid(std::string_view why, std::string_view field, std::string_view message) {
  return Refuse(absl::StatusCode::kInvalidArgument, why, field, message);
}

}  // namespace

std::string Quoted(std::string_view name) {
  constexpr size_t kShown = 96;
  std::string text = "'";
  for (const char c : name.substr(0, kShown)) text += c >= 0x20 && c < 0x7f ? c : '?';
  if (name.size() > kShown) text += "...";
  return text + "'";
}

absl::Status BadFile(std::string_view file, std::string_view message) {
  return Invalid(reason::kInvalidModelFile, file, message);
}

absl::Status BadTensor(std::string_view file, std::string_view tensor, std::string_view message) {
  return Invalid(reason::kInvalidModelFile, TensorField(file, tensor), message);
}

absl::Status UnsupportedFile(std::string_view file, std::string_view message) {
  return Invalid(reason::kUnsupportedFormat, file, message);
}

absl::Status UnsupportedTensor(std::string_view file, std::string_view tensor,
                               std::string_view message) {
  return Invalid(reason::kUnsupportedFormat, TensorField(file, tensor), message);
}

absl::Status UnsupportedModel(std::string_view file, std::string_view message) {
  return Invalid(reason::kUnsupportedArchitecture, file, message);
}

}  // namespace babai
