#include "client/refusal.h"

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "google/rpc/error_details.pb.h"

namespace babai::client {
namespace {

constexpr char kDetails[] = "type.googleapis.com/google.rpc.Status";

}  // namespace

absl::Status FromProto(const google::rpc::Status& status) {
  absl::Status out(static_cast<absl::StatusCode>(status.code()), status.message());
  if (!out.ok()) out.SetPayload(kDetails, absl::Cord(status.SerializeAsString()));
  return out;
}

absl::Status FromGrpc(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) details.Clear();
  details.set_code(static_cast<int>(status.error_code()));
  details.set_message(status.error_message());
  return FromProto(details);
}

Refusal RefusalOf(const absl::Status& status) {
  Refusal refusal;
  refusal.code = absl::StatusCodeToString(status.code());
  refusal.message = std::string(status.message());
  google::rpc::Status details;
  const auto payload = status.GetPayload(kDetails);
  if (!payload || !details.ParseFromString(std::string(*payload))) return refusal;
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&info)) {
      refusal.reason = info.reason();
      const auto field = info.metadata().find("field");
      if (field != info.metadata().end()) refusal.field = field->second;
    } else if (detail.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      refusal.retry_seconds = static_cast<double>(delay.seconds()) + 1e-9 * delay.nanos();
    }
  }
  return refusal;
}

std::string ToText(const absl::Status& status) {
  const Refusal refusal = RefusalOf(status);
  std::string why = refusal.reason;
  if (!refusal.field.empty()) absl::StrAppend(&why, why.empty() ? "" : ", ", refusal.field);
  std::string text = refusal.code;
  if (!why.empty()) absl::StrAppend(&text, " (", why, ")");
  // Servers put the field in front of the message too.
  const std::string prefix = absl::StrCat(refusal.field, ": ");
  absl::StrAppend(&text, ": ", absl::StripPrefix(refusal.message, prefix));
  if (refusal.retry_seconds > 0) {
    absl::StrAppend(&text, " [retry after ", refusal.retry_seconds, " s]");
  }
  return text;
}

}  // namespace babai::client
