#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = kChunkLogits / kThreads;

struct Best {
  float top = -__builtin_huge_valf();
  int at = 0x7fffffff;

  __device__ __forceinline__ void Take(float v, int c) {
    if (v > top || (v == top && c < at)) top = v, at = c;
  }
};

// Of the block, for every thread. `scratch`: one a warp.
__device__ __forceinline__ Best BlockBest(Best best, Best* scratch) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    best.Take(__shfl_xor_sync(kAllLanes, best.top, step),
              __shfl_xor_sync(kAllLanes, best.at, step));
  }
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = best;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) best.Take(scratch[w].top, scratch[w].at);
  return best;
}

// A block a chunk of a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) FinishLogitsKernel(FinishLogitsArgs a) {
  SHARED_VARIABLE(bests, Best[kThreads / kWarp]);
  SHARED_VARIABLE(sums, float[kWarp + 1]);
  StartStep();
  const int64_t row = blockIdx.y;
  const int first = blockIdx.x * kChunkLogits + threadIdx.x;
  bool finite = true;
  float v[kPerThread];
  Best best;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int c = first + i * kThreads;
    if (c >= a.vocab) break;
    v[i] = ToFloat(static_cast<const T*>(a.y)[row * a.vocab + c]);
    if (a.bias != nullptr) v[i] += a.bias[c];
    finite &= isfinite(v[i]);
    if (a.softcap > 0) v[i] = a.softcap * tanhf(v[i] / a.softcap);
    a.logits[row * a.vocab + c] = v[i];
    best.Take(v[i], c);
  }
  if (!finite) a.results[row].not_finite = 1;
  const RowChoice choice = a.choices[row];
  if (!choice.wanted) return;
  best = BlockBest(best, bests);
  float sum = 0;
  if (choice.temperature > 0) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (first + i * kThreads < a.vocab) sum += expf((v[i] - best.top) / choice.temperature);
    }
    sum = BlockSum(sum, sums);
  }
  if (threadIdx.x == 0) {
    a.chunks[row * gridDim.x + blockIdx.x] = {best.top, best.at, sum};
  }
}

}  // namespace

cudaError_t FinishLogits(const FinishLogitsArgs& args, const Queue& queue) {
  const dim3 grid(LogitChunks(args.vocab), args.rows);
  const auto kernel =
      args.dtype == Dtype::kFp16 ? FinishLogitsKernel<__half> : FinishLogitsKernel<__nv_bfloat16>;
  return Launch(kernel, grid, kThreads, 0, queue, args);
}

}  // namespace babai::cuda
