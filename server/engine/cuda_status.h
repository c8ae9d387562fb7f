// What the kernels and the CUDA runtime report, as refusals that a caller can act on.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace babai {

// ResourceExhausted OUT_OF_MEMORY; Unavailable DEVICE_LOST; FailedPrecondition DEVICE_UNAVAILABLE;
// InvalidArgument UNSUPPORTED_SHAPE; DataLoss INVALID_MODEL_FILE; anything else Internal INTERNAL.
// `field`: the tensor at fault, or empty.
absl::Status DeviceRefusal(const absl::Status& status, std::string_view field = "");

}  // namespace babai
