#include "server/engine/cuda_runner.h"
#include "server/reason/reason.h"

namespace babai {

absl::Status CudaAvailable() {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kDeviceUnavailable, "device",
                "this build has no CUDA backend; use --device auto or cpu");
}

absl::StatusOr<int64_t> DefaultCudaMemoryLimit() { return CudaAvailable(); }

absl::StatusOr<MemoryPlan> PlanCudaMemory(const PackedModel&, const RunnerOptions&) {
  return CudaAvailable();
}

absl::StatusOr<std::unique_ptr<Runner>> MakeCudaRunner(std::shared_ptr<const PackedModel>,
                                                       const RunnerOptions&) {
  return CudaAvailable();
}

}  // namespace babai
