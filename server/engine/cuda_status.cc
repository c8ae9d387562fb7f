#include "server/engine/cuda_status.h"

#include "server/reason/reason.h"

namespace babai {

absl::Status DeviceRefusal(const absl::Status& status, std::string_view field) {
  const std::string message(status.message());
  const auto refuse = [&](std::string_view why) {
    return Refuse(status.code(), why, field, message);
  };
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return status;
    case absl::StatusCode::kResourceExhausted:
      return refuse(reason::kOutOfMemory);
    case absl::StatusCode::kUnavailable:
      return refuse(reason::kDeviceLost);
    case absl::StatusCode::kFailedPrecondition:
      return refuse(reason::kDeviceUnavailable);
    case absl::StatusCode::kInvalidArgument:
      return refuse(reason::kUnsupportedShape);
    case absl::StatusCode::kDataLoss:
      return refuse(reason::kInvalidModelFile);
    default:
      return Refuse(absl::StatusCode::kInternal, reason::kInternal, field, message);
  }
}

}  // namespace babai
