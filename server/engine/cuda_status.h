// What the kernels and the CUDA runtime report, as refusals that a caller can act on.
#pragma once

#include <string_view>
#include <utility>

#include "absl/status/status.h"

namespace babai {

// ResourceExhausted OUT_OF_MEMORY; Unavailable DEVICE_LOST; FailedPrecondition DEVICE_UNAVAILABLE;
// InvalidArgument UNSUPPORTED_SHAPE; DataLoss INVALID_MODEL_FILE; anything else Internal INTERNAL.
// `field`: the tensor at fault, or empty.
absl::Status DeviceRefusal(const absl::Status& status, std::string_view field = "");

// The first that is not OK; what follows it does not matter then.
class FirstError {
 public:
  void operator+=(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

}  // namespace babai
