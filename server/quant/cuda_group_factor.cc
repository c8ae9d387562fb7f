// Order, damping and factor of a group's moments.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cuda/metric.h"
#include "server/quant/cuda_group.h"
#include "server/quant/cuda_group_arrays.h"
#include "server/quant/fit_input.h"
#include "server/quant/order.h"
#include "server/reason/reason.h"

namespace babai {

absl::Status CudaGroupSolver::ReadDiagonal() {
  const GroupColumns device(columns_, shape_.k), host(pinned_columns_, shape_.k);
  absl::Status status =
      Launched(cuda::Diagonal({moments_.data<float>(), device.raw_diag, Int(shape_.k)}, queue()),
               "Diagonal");
  if (status.ok()) {
    status = CopyTo(device.raw_diag, shape_.k, host.raw_diag, cudaMemcpyDeviceToHost, stream_);
  }
  if (status.ok()) status = stream_.Synchronize();
  if (!status.ok()) return status;
  std::vector<double> diag(host.raw_diag, host.raw_diag + shape_.k);
  for (double& d : diag) {
    d /= static_cast<double>(tokens_);
    if (std::isfinite(d)) continue;
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "",
                  "an input of the layer is not a number or infinite on the calibration data: the "
                  "model overflows the GPU's 16-bit activations on it");
  }
  auto plan = PlanDamping(diag);
  if (!plan.ok()) return plan.status();
  solved_.plan = *std::move(plan);
  return absl::OkStatus();
}

absl::Status CudaGroupSolver::Factorize() {
  const DampingPlan& plan = solved_.plan;
  std::vector<double> diag = plan.diag;
  solved_.damping = DampingFor(recipe_.damping, tokens_, shape_.k) * plan.mean;
  for (double& d : diag) d += solved_.damping;
  for (;; ++solved_.doublings) {
    const auto done = TryFactor(diag);
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
    if (solved_.doublings == kMostDampingDoublings || solved_.damping == 0) {
      return NoCholeskyFactor(solved_.damping / plan.mean);
    }
    for (double& d : diag) d += solved_.damping;  // twice what it was
    solved_.damping *= 2;
  }
}

absl::StatusOr<bool> CudaGroupSolver::TryFactor(absl::Span<const double> diag) {
  const int64_t k = shape_.k;
  const GroupColumns device(columns_, k), host(pinned_columns_, k);
  const std::vector<int32_t> order = DiagonalOrder(recipe_.order, diag);
  std::copy(diag.begin(), diag.end(), host.diag);
  std::copy(order.begin(), order.end(), host.order);
  std::copy(solved_.plan.dead.begin(), solved_.plan.dead.end(), host.dead);
  absl::Status status = CopyTo(host.diag, k, device.diag, cudaMemcpyHostToDevice, stream_);
  if (status.ok()) status = CopyTo(host.order, k, device.order, cudaMemcpyHostToDevice, stream_);
  if (status.ok()) status = CopyTo(host.dead, k, device.dead, cudaMemcpyHostToDevice, stream_);
  const cuda::OrderMetricArgs metric = {moments_.data<float>(),
                                        device.order,
                                        device.diag,
                                        device.dead,
                                        1.0 / static_cast<double>(tokens_),
                                        metric_.data<double>(),
                                        Int(k)};
  if (status.ok()) status = Launched(cuda::OrderMetric(metric, queue()), "OrderMetric");
  if (status.ok()) {
    status = cholesky_->Run(metric_.data<double>(), Int(k), work_.data<double>(), work_values_,
                            device.info);
  }
  // As the norms want it; the sweep takes it again.
  const cuda::TakeFactorArgs take = {metric_.data<double>(), factor_.data<float>(), device.pivots,
                                     /*to_tf32=*/true, Int(k)};
  if (status.ok()) status = Launched(cuda::TakeFactor(take, queue()), "TakeFactor");
  if (status.ok()) status = CopyTo(device.info, 1, host.info, cudaMemcpyDeviceToHost, stream_);
  if (status.ok()) status = CopyTo(device.pivots, k, host.pivots, cudaMemcpyDeviceToHost, stream_);
  if (status.ok()) status = stream_.Synchronize();
  if (!status.ok()) return status;
  return *host.info == 0;
}

absl::Status CudaGroupSolver::TakePivots() {
  const int64_t k = shape_.k;
  const GroupColumns device(columns_, k), host(pinned_columns_, k);
  solved_.squared_pivots.resize(k);
  for (int64_t p = 0; p < k; ++p) {
    const double l = host.pivots[p];
    solved_.squared_pivots[host.order[p]] = l * l;
    host.l_diag[p] = static_cast<float>(l), host.inverse[p] = static_cast<float>(1 / l);
  }
  const bool weighted = recipe_.scale_fit == ScaleFit::kLossWeighted;
  const std::vector<float> importance =
      MeanOne(weighted ? solved_.squared_pivots : std::vector<double>(), k);
  std::copy(importance.begin(), importance.end(), host.importance);
  absl::Status status = CopyTo(host.l_diag, k, device.l_diag, cudaMemcpyHostToDevice, stream_);
  if (status.ok())
    status = CopyTo(host.inverse, k, device.inverse, cudaMemcpyHostToDevice, stream_);
  if (!status.ok()) return status;
  return CopyTo(host.importance, k, device.importance, cudaMemcpyHostToDevice, stream_);
}

}  // namespace babai
