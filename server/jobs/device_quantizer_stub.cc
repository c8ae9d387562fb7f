#include "server/engine/cuda_runner.h"
#include "server/jobs/device_quantizer.h"

namespace babai {

bool DeviceQuantizes(const Recipe&) { return false; }

absl::StatusOr<std::unique_ptr<DeviceQuantizer>> MakeDeviceQuantizer(const DeviceQuantizerInputs&) {
  return CudaAvailable();
}

}  // namespace babai
