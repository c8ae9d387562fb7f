#include "kernels/cuda/sweep.h"

#include <algorithm>

#include "kernels/cuda/device.h"
#include "kernels/cuda/sweep_panel.h"

namespace babai::cuda {
namespace {

absl::Status Clear(void* data, int64_t bytes, const Queue& queue) {
  return FromCuda(cudaMemsetAsync(data, 0, bytes, queue.stream), "clearing memory");
}

// s of positions [to, to_end) += what the errors of panels [from, from_end) of the stretch that
// begins at `stretch` ask of them. Column-major, errors are n x rows and the factor its own
// transpose; the three products are one, of three times the rows.
absl::Status PassOn(const SweepArgs& a, int stretch, int from, int from_end, int to, int to_end,
                    Cublas& cublas) {
  if (to >= to_end) return absl::OkStatus();
  const int64_t rows = 3 * kPanel;
  GemmCall call;
  call.transpose_b = true;
  call.m = a.n, call.n = to_end - to, call.k = static_cast<int>(rows * (from_end - from));
  call.a = a.errors + rows * (from - stretch / kPanel) * a.n, call.lda = a.n;
  call.b = a.split + rows * from * a.k + to, call.ldb = a.k;
  call.beta = 1;
  call.c = a.sums + int64_t{to} * a.n, call.ldc = a.n;
  call.tf32 = true;
  return cublas.Gemm(call);
}

}  // namespace

absl::Status Sweep(const SweepArgs& a, Cublas& cublas, const Queue& queue) {
  absl::Status status = Clear(a.sums, int64_t{a.k} * a.n * sizeof(float), queue);
  if (status.ok()) status = Clear(a.losses, a.n * sizeof(double), queue);
  if (status.ok()) status = Clear(a.clipped, a.n * sizeof(int), queue);
  for (int first = (a.k - 1) / kStretch * kStretch; status.ok() && first >= 0; first -= kStretch) {
    const int begin = first / kPanel, end = (std::min(first + kStretch, a.k) + kPanel - 1) / kPanel;
    for (int panel = end - 1; panel >= begin && status.ok(); --panel) {
      status = FromCuda(SweepPanel(a, panel, panel - begin, queue), "SweepPanel");
      if (!status.ok()) return status;
      status = PassOn(a, first, panel, panel + 1, first, panel * kPanel, cublas);
    }
    if (status.ok()) status = PassOn(a, first, begin, end, 0, first, cublas);
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
