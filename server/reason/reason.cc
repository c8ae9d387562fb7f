#include "server/reason/reason.h"

#include "absl/strings/cord.h"

namespace babai {
namespace {

constexpr std::string_view kReasonUrl = "babai/reason";
constexpr std::string_view kFieldUrl = "babai/field";

std::string Payload(const absl::Status& status, std::string_view url) {
  const auto cord = status.GetPayload(absl::string_view(url.data(), url.size()));
  return cord ? std::string(*cord) : std::string();
}

}  // namespace

absl::Status Refuse(absl::StatusCode code, std::string_view why, std::string_view field,
                    std::string_view message) {
  std::string text(message);
  if (!field.empty()) text = std::string(field) + ": " + text;
  absl::Status status(code, text);
  status.SetPayload(absl::string_view(kReasonUrl.data(), kReasonUrl.size()), absl::Cord(std::string(why)));
  if (!field.empty()) {
    status.SetPayload(absl::string_view(kFieldUrl.data(), kFieldUrl.size()), absl::Cord(std::string(field)));
  }
  return status;
}

absl::Status InvalidField(std::string_view field, std::string_view message) {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidField, field, message);
}

std::string ReasonOf(const absl::Status& status) { return Payload(status, kReasonUrl); }
std::string FieldOf(const absl::Status& status) { return Payload(status, kFieldUrl); }

}  // namespace babai
