#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

template <typename T>
__global__ void FinishLogitsKernel(FinishLogitsArgs a) {
  StartStep();
  const int64_t row = blockIdx.y;
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = (blockIdx.x * kPerThread + i) * kThreads + threadIdx.x;
    if (c >= a.vocab) break;
    float v = ToFloat(static_cast<const T*>(a.y)[row * a.vocab + c]);
    if (a.bias != nullptr) v += a.bias[c];
    finite &= isfinite(v);
    if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
    a.logits[row * a.vocab + c] = v;
  }
  if (!finite) a.not_finite[row] = 1;
}

}  // namespace

cudaError_t FinishLogits(const FinishLogitsArgs& args, const Queue& queue) {
  constexpr int kBlockCols = kThreads * kPerThread;
  const dim3 grid((args.vocab + kBlockCols - 1) / kBlockCols, args.rows);
  const auto kernel =
      args.dtype == Dtype::kFp16 ? FinishLogitsKernel<__half> : FinishLogitsKernel<__nv_bfloat16>;
  return Launch(kernel, grid, kThreads, 0, queue, args);
}

}  // namespace babai::cuda
