// The runner on an NVIDIA GPU (docs/gpu.md). A build without the CUDA compiler has these functions
// too: they say that there is no device.
//
// Differences from the CPU's: activations are fp16 or bf16 around an fp32 residual stream and
// logits carry that rounding; the KV cache is fp16; RunnerOptions::numerics makes no difference
// (weights are never rounded again); a token's result may depend, in its last bits, on how many
// tokens share its step.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine/runner.h"

namespace babai {

// FailedPrecondition DEVICE_UNAVAILABLE says what is missing: the backend in this build, a driver,
// a device.
absl::Status CudaAvailable();

// 90 % of the device's memory that is free now. Errors as CudaAvailable().
absl::StatusOr<int64_t> DefaultCudaMemoryLimit();

// Bytes of device memory that MakeCudaRunner would take. InvalidArgument UNSUPPORTED_SHAPE,
// UNSUPPORTED_FORMAT: the kernels can not run this model.
absl::StatusOr<MemoryPlan> PlanCudaMemory(const PackedModel& model, const RunnerOptions& options);

// Loads the model. Requires options.kv_dtype == kF16. ResourceExhausted OUT_OF_MEMORY before
// anything is allocated, where the plan does not fit what is free; FailedPrecondition
// DEVICE_UNAVAILABLE, also where weights are not packed and cuBLAS is missing.
//
// Step(): Unavailable DEVICE_LOST once the device has failed; from then on nothing in this process
// can use it.
absl::StatusOr<std::unique_ptr<Runner>> MakeCudaRunner(std::shared_ptr<const PackedModel> model,
                                                       const RunnerOptions& options);

}  // namespace babai
