#include <cuda_fp16.h>

#include "kernels/cuda/fit_scales.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kCandidates = 51;  // 130 %, 128 % .. 30 % of the range
constexpr int kAtOnce = 6;       // candidates a pass over the group

__device__ __forceinline__ float Clamped(float x, float low, float high) {
  return x > low ? (x < high ? x : high) : low;
}

// The scale as it is stored, never 0; infinite where fp16 ends.
__device__ __forceinline__ float StoredScale(float s) {
  const float stored = __half2float(__float2half_rn(s));
  return stored < 0x1p-24f ? 0x1p-24f : stored;
}

struct Range {
  float low = 0, high = 0, max_code;
  bool symmetric, finite = true;

  __device__ void Add(float w) {
    finite = finite && isfinite(w);
    low = w < low ? w : low;
    high = w > high ? w : high;
  }
  __device__ void Close() {
    if (!symmetric) return;
    high = -low > high ? -low : high;
    low = -high;
  }
  __device__ float Scale(float shrink) const {
    const float span = (high - low) * shrink;
    return span == 0 ? 1.0f : StoredScale(span / max_code);
  }
  __device__ float Zero(float shrink, float scale, float shift) const {
    if (symmetric) return (max_code + 1) * 0.5f;
    return Clamped(rintf(-low * shrink / scale) + shift, 0.0f, max_code);
  }
};

__device__ __forceinline__ float Shrink(int candidate) {
  return static_cast<float>(130 - 2 * candidate) / 100.0f;
}

struct Choice {
  float scale, zero, error;
};

// Searches candidates [first, first + kAtOnce), each with kShifts zero points.
template <int kShifts>
__device__ __forceinline__ void Search(const FitScalesArgs& a, const Range& range, const float* w,
                                       const float* importance, int first, Choice& best) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers, ties to even
  float scale[kAtOnce], inverse[kAtOnce], low[kAtOnce][kShifts], sum[kAtOnce][kShifts];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const float shrink = Shrink(first + i);
    scale[i] = range.Scale(shrink), inverse[i] = 1.0f / scale[i];
#pragma unroll
    for (int j = 0; j < kShifts; ++j) {
      low[i][j] = -range.Zero(shrink, scale[i], static_cast<float>(j - kShifts / 2));
      sum[i][j] = 0;
    }
  }
  for (int c = 0; c < a.group; ++c) {
    const float v = w[int64_t{c} * a.n], weight = importance[c];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float wanted = v * inverse[i];
#pragma unroll
      for (int j = 0; j < kShifts; ++j) {
        float code = fminf(fmaxf(wanted, low[i][j]), low[i][j] + range.max_code);
        code = (code + kMagic) - kMagic;
        const float d = fmaf(-scale[i], code, v);
        sum[i][j] = fmaf(weight, d * d, sum[i][j]);
      }
    }
  }
  if (first == 0) best = {scale[0], -low[0][kShifts / 2], sum[0][kShifts / 2]};
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    if (first + i >= kCandidates) break;
#pragma unroll
    for (int j = 0; j < kShifts; ++j) {
      if (sum[i][j] < best.error) best = {scale[i], -low[i][j], sum[i][j]};
    }
  }
}

template <int kShifts>
__global__ void __launch_bounds__(kThreads) FitScalesKernel(FitScalesArgs a) {
  const int row = blockIdx.x * kThreads + threadIdx.x, g = blockIdx.y;
  if (row >= a.n) return;
  const float* w = a.w + int64_t{g} * a.group * a.n + row;
  Range range;
  range.max_code = static_cast<float>((1 << a.bits) - 1);
  range.symmetric = a.symmetric;
  for (int c = 0; c < a.group; ++c) range.Add(w[int64_t{c} * a.n]);
  range.Close();
  Choice best = {range.Scale(1.0f), 0, 0};
  best.zero = range.Zero(1.0f, best.scale, 0);
  if (a.range == FitRange::kSearched) {
    for (int first = 0; first < kCandidates; first += kAtOnce) {
      Search<kShifts>(a, range, w, a.importance + g * a.group, first, best);
    }
  }
  const __half scale = __float2half_rn(best.scale);
  const int refused =
      (range.finite ? 0 : kFitNotFinite) | (range.finite && __hisinf(scale) ? kFitTooLarge : 0);
  if (refused != 0) atomicOr(a.refused, refused);
  a.scales[int64_t{g} * a.n + row] = __half_as_ushort(scale);
  a.zeros[int64_t{g} * a.n + row] = static_cast<uint8_t>(best.zero);
}

}  // namespace

cudaError_t FitScales(const FitScalesArgs& args, const Queue& queue) {
  const dim3 grid((args.n + kThreads - 1) / kThreads, args.k / args.group);
  if (args.symmetric) {
    FitScalesKernel<1><<<grid, kThreads, 0, queue.stream>>>(args);
  } else {
    FitScalesKernel<3><<<grid, kThreads, 0, queue.stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace babai::cuda
