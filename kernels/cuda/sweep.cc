#include "kernels/cuda/sweep.h"

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/sweep_panel.h"

namespace babai::cuda {
namespace {

constexpr int kStretch = 1024;  // columns whose errors go to all earlier ones at once

absl::Status Clear(void* data, int64_t bytes, const Queue& queue) {
  return FromCuda(cudaMemsetAsync(data, 0, bytes, queue.stream), "clearing memory");
}

// s of positions [to, to_end) += what the errors of positions [from, from_end) ask of them.
// Column-major, errors are n x k and the factor its own transpose.
absl::Status PassOn(const SweepArgs& a, int from, int from_end, int to, int to_end,
                    Cublas& cublas) {
  if (to >= to_end) return absl::OkStatus();
  GemmCall call;
  call.transpose_b = true;
  call.m = a.n, call.n = to_end - to, call.k = from_end - from;
  call.a = a.errors + int64_t{from} * a.n, call.lda = a.n;
  call.b = a.l + int64_t{from} * a.k + to, call.ldb = a.k;
  call.beta = 1;
  call.c = a.errors + int64_t{to} * a.n, call.ldc = a.n;
  return cublas.Gemm(call);
}

absl::Status SweepStretch(const SweepArgs& a, int first, int end, Cublas& cublas,
                          const Queue& queue) {
  for (int panel = (end - 1) / kPanel * kPanel; panel >= first; panel -= kPanel) {
    const int panel_end = std::min(panel + kPanel, end);
    const cudaError_t launched = SweepPanel(a, panel, panel_end - panel, queue);
    if (launched != cudaSuccess) return FromCuda(launched, "SweepPanel");
    if (absl::Status s = PassOn(a, panel, panel_end, first, panel, cublas); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Sweep(const SweepArgs& a, Cublas& cublas, const Queue& queue) {
  absl::Status status = Clear(a.errors, int64_t{a.k} * a.n * sizeof(float), queue);
  if (status.ok()) status = Clear(a.losses, a.n * sizeof(double), queue);
  if (status.ok()) status = Clear(a.clipped, a.n * sizeof(int), queue);
  for (int first = (a.k - 1) / kStretch * kStretch; status.ok() && first >= 0; first -= kStretch) {
    const int end = std::min(first + kStretch, a.k);
    status = SweepStretch(a, first, end, cublas, queue);
    if (status.ok()) status = PassOn(a, first, end, 0, first, cublas);
  }
  return status;
}

absl::Status SquaredNorms(const NormArgs& a, Cublas& cublas, const Queue& queue) {
  absl::Status status = Clear(a.losses, a.n * sizeof(double), queue);
  if (!status.ok()) return status;
  status = FromCuda(SortColumns(a, queue), "SortColumns");
  for (int first = 0; status.ok() && first < a.k; first += kNormColumns) {
    const int count = std::min(kNormColumns, a.k - first);
    GemmCall call;  // products = sorted[first ..] l[first .., first .. first + count)
    call.transpose_b = true;
    call.m = a.n, call.n = count, call.k = a.k - first;
    call.a = a.sorted + int64_t{first} * a.n, call.lda = a.n;
    call.b = a.l + int64_t{first} * a.k + first, call.ldb = a.k;
    call.c = a.products, call.ldc = a.n;
    call.tf32 = true;
    status = cublas.Gemm(call);
    if (status.ok()) status = FromCuda(AddSquares(a, count, queue), "AddSquares");
  }
  return status;
}

}  // namespace babai::cuda
