#include "server/engine/cuda_runner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine/cuda_runner_impl.h"
#include "server/engine/cuda_status.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

struct Plan {
  MemoryPlan memory;
  CudaGemmNeeds needs;
};

absl::StatusOr<Plan> MakePlan(const PackedModel& model, const RunnerOptions& options) {
  if (absl::Status s = CudaRunner::Check(model.config(), options); !s.ok()) return s;
  const absl::StatusOr<cuda::DeviceLimits> limits = cuda::GetDeviceLimits(0);
  if (!limits.ok()) return DeviceRefusal(limits.status());
  const absl::StatusOr<CudaLinearPlan> weights = PlanCudaWeights(model);
  if (!weights.ok()) return weights.status();
  Plan plan;
  plan.needs = weights->needs;
  plan.memory.weight_bytes = weights->bytes;
  plan.memory.kv_bytes_per_block = CudaRunner::KvBytesPerBlock(model.config(), options);
  plan.memory.work_bytes = CudaLoader::kDeviceBytes +
                           CudaRunner::WorkBytes(model.config(), options, *limits, plan.needs);
  return plan;
}

absl::Status CheckFits(const MemoryPlan& plan, const RunnerOptions& options) {
  const absl::StatusOr<cuda::DeviceMemory> memory = cuda::GetDeviceMemory();
  if (!memory.ok()) return DeviceRefusal(memory.status());
  const int64_t bytes =
      plan.weight_bytes + plan.work_bytes + plan.kv_bytes_per_block * options.kv_blocks;
  if (bytes <= memory->free) return absl::OkStatus();
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "model",
                absl::StrCat("needs ", bytes, " bytes of the device's memory, ", memory->free,
                             " of ", memory->total, " are free"));
}

// Whether dense products can be had: before gigabytes are loaded for them.
absl::Status CheckDense() {
  const absl::StatusOr<cuda::Stream> stream = cuda::Stream::Make();
  if (!stream.ok()) return DeviceRefusal(stream.status());
  return DeviceRefusal(cuda::DenseGemm::Make(*stream).status());
}

}  // namespace

absl::Status CudaAvailable() { return DeviceRefusal(cuda::CheckDevice(), "device"); }

absl::StatusOr<int64_t> DefaultCudaMemoryLimit() {
  if (absl::Status available = CudaAvailable(); !available.ok()) return available;
  const absl::StatusOr<cuda::DeviceMemory> memory = cuda::GetDeviceMemory();
  if (!memory.ok()) return DeviceRefusal(memory.status());
  return memory->free / 10 * 9;
}

absl::StatusOr<MemoryPlan> PlanCudaMemory(const PackedModel& model, const RunnerOptions& options) {
  if (absl::Status available = CudaAvailable(); !available.ok()) return available;
  const absl::StatusOr<Plan> plan = MakePlan(model, options);
  if (!plan.ok()) return plan.status();
  return plan->memory;
}

absl::StatusOr<std::unique_ptr<Runner>> MakeCudaRunner(std::shared_ptr<const PackedModel> model,
                                                       const RunnerOptions& options) {
  if (absl::Status available = CudaAvailable(); !available.ok()) return available;
  const absl::StatusOr<Plan> plan = MakePlan(*model, options);
  if (!plan.ok()) return plan.status();
  if (absl::Status fits = CheckFits(plan->memory, options); !fits.ok()) return fits;
  if (plan->needs.dense) {
    if (absl::Status found = CheckDense(); !found.ok()) return found;
  }
  absl::StatusOr<std::unique_ptr<CudaWeights>> weights = LoadCudaWeights(*model);
  if (!weights.ok()) return weights.status();
  absl::StatusOr<std::unique_ptr<CudaRunner>> runner =
      CudaRunner::Create(model->config(), *std::move(weights), options);
  if (!runner.ok()) return runner.status();
  return std::unique_ptr<Runner>(*std::move(runner));
}

}  // namespace babai
