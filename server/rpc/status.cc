#include "server/rpc/status.h"

#include <string>

#include "google/rpc/error_details.pb.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr size_t kMaxMessageBytes = 1024;

// Cuts at a character's border: a proto string must stay UTF-8.
std::string Shorten(std::string text) {
  if (text.size() <= kMaxMessageBytes) return text;
  size_t end = kMaxMessageBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  text.resize(end);
  return text + "...";
}

// Messages quote file contents now and then; bytes outside ASCII that are not UTF-8 would make the
// whole status unparsable for strict clients.
std::string OnlyUtf8(std::string text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80    ? 1
                          : lead >= 0xF0 ? 4
                          : lead >= 0xE0 ? 3
                          : lead >= 0xC2 ? 2
                                         : 0;
    bool whole = length > 0 && lead < 0xF5 && i + length <= text.size();
    for (size_t k = 1; whole && k < length; ++k) {
      whole = (static_cast<unsigned char>(text[i + k]) & 0xC0) == 0x80;
    }
    if (!whole) text[i] = '?';
    i += whole ? length : 1;
  }
  return text;
}

std::string ReasonOrDefault(const absl::Status& status) {
  std::string why = ReasonOf(status);
  if (!why.empty()) return why;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return std::string(reason::kInvalidField);
    case absl::StatusCode::kCancelled:
      return std::string(reason::kCancelled);
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kUnimplemented:
      return std::string(reason::kUnimplemented);
    default:
      return std::string(reason::kInternal);
  }
}

// 0 = do not retry as it is.
int RetrySeconds(std::string_view why) {
  if (why == reason::kQueueFull) return 1;
  if (why == reason::kDraining) return 5;
  return 0;
}

}  // namespace

google::rpc::Status ToProtoStatus(const absl::Status& status) {
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  if (status.ok()) return proto;
  proto.set_message(Shorten(OnlyUtf8(std::string(status.message()))));

  const std::string why = ReasonOrDefault(status);
  const std::string field = Shorten(OnlyUtf8(FieldOf(status)));
  google::rpc::ErrorInfo info;
  info.set_reason(why);
  info.set_domain("babai");
  if (!field.empty()) (*info.mutable_metadata())["field"] = field;
  proto.add_details()->PackFrom(info);

  if (status.code() == absl::StatusCode::kInvalidArgument && !field.empty()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(field);
    violation->set_description(proto.message());
    proto.add_details()->PackFrom(bad);
  }
  if (const int seconds = RetrySeconds(why)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(seconds);
    proto.add_details()->PackFrom(retry);
  }
  return proto;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status proto = ToProtoStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(proto.code()), proto.message(),
                      proto.SerializeAsString());
}

}  // namespace babai
