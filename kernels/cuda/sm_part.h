// A part of the current device's multiprocessors. Work on a stream of the part stays inside it;
// other streams may use every multiprocessor, so that some are always free of the part's work. By
// the driver's green contexts (CUDA driver API reference, 12.4), found at run time.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace babai::cuda {

// Any number of threads may make streams at once.
class SmPart {
 public:
  // The largest part that leaves at least this share of the multiprocessors to others; parts come
  // in eights. InvalidArgument: the part would have none. FailedPrecondition: the driver makes no
  // such parts.
  static absl::StatusOr<std::unique_ptr<SmPart>> Leaving(double share);
  virtual ~SmPart() = default;

  // It must go before the part does.
  virtual absl::StatusOr<Stream> MakeStream() const = 0;
  virtual int sms() const = 0;
};

}  // namespace babai::cuda
