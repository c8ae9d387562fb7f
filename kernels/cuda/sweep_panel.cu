#include <cuda_fp16.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sweep_panel.h"

namespace babai::cuda {
namespace {

constexpr int kSub = 32;  // columns whose sums a thread holds in registers

__device__ __forceinline__ float Clamped(float x, float low, float high) {
  return x > low ? (x < high ? x : high) : low;
}

template <int kThreads>
struct PanelShared {
  float4 l[kPanel][kPanel / 4];  // row i: what the error at position i asks of the others
  float errors[kPanel][kThreads];
  float diag[kPanel], inverse[kPanel];
  int column[kPanel];
};

template <int kThreads>
__device__ void LoadPanel(const SweepArgs& a, int first, int count, PanelShared<kThreads>& shared) {
  for (int i = threadIdx.x; i < kPanel * kPanel / 4; i += kThreads) {
    const int row = i / (kPanel / 4), quad = i % (kPanel / 4);
    float4 v = make_float4(0, 0, 0, 0);
    if (row < count && quad * 4 < count) {
      v = *reinterpret_cast<const float4*>(a.l + int64_t{first + row} * a.k + first + quad * 4);
    }
    shared.l[row][quad] = v;
  }
  for (int i = threadIdx.x; i < count; i += kThreads) {
    shared.diag[i] = a.diag[first + i], shared.inverse[i] = a.inverse[first + i];
    shared.column[i] = a.order[first + i];
  }
}

// s += error * l[0 .. kSub).
__device__ __forceinline__ void AddScaled(float error, const float4* l, float (&s)[kSub]) {
#pragma unroll
  for (int q = 0; q < kSub / 4; ++q) {
    const float4 v = l[q];
    s[4 * q] += error * v.x, s[4 * q + 1] += error * v.y;
    s[4 * q + 2] += error * v.z, s[4 * q + 3] += error * v.w;
  }
}

// One row, columns kSub at a time: what later ones of the panel ask is summed first, then the sums
// follow each rounding in registers.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) PanelKernel(SweepArgs a, int first, int count) {
  extern __shared__ __align__(16) uint8_t memory[];
  PanelShared<kThreads>& shared = *reinterpret_cast<PanelShared<kThreads>*>(memory);
  LoadPanel(a, first, count, shared);
  __syncthreads();
  const int row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= a.n) return;
  float* errors = a.errors + int64_t{first} * a.n + row;
  const float max_code = static_cast<float>(a.max_code);
  double loss = 0;
  int clipped = 0;
#pragma unroll 1
  for (int c0 = (count - 1) / kSub * kSub; c0 >= 0; c0 -= kSub) {
    float s[kSub], w[kSub], scale[kSub], zero[kSub];
#pragma unroll
    for (int c = 0; c < kSub; ++c) {  // every load before the first use
      const int p = min(c0 + c, count - 1), column = shared.column[p];
      const int64_t group = column / a.group;
      s[c] = errors[int64_t{p} * a.n];
      w[c] = a.w[int64_t{column} * a.n + row];
      scale[c] = __half2float(__ushort_as_half(a.scales[group * a.n + row]));
      zero[c] = static_cast<float>(a.zeros[group * a.n + row]);
    }
    for (int p = c0 + kSub; p < count; ++p) {
      AddScaled(shared.errors[p][threadIdx.x], shared.l[p] + c0 / 4, s);
    }
#pragma unroll
    for (int c = kSub - 1; c >= 0; --c) {
      const int p = c0 + c;
      if (p >= count) continue;
      const float u = w[c] + s[c] * shared.inverse[p];
      const float wanted = rintf(u / scale[c]) + zero[c];
      const float stored = Clamped(wanted, 0.0f, max_code);
      const float value = scale[c] * (stored - zero[c]), error = w[c] - value;
      const double y = shared.diag[p] * (u - value);
      loss += y * y;
      clipped += stored != wanted;
      shared.errors[p][threadIdx.x] = error;
      errors[int64_t{p} * a.n] = error;
      a.codes[int64_t{shared.column[p]} * a.n + row] = static_cast<uint8_t>(stored);
      const float4* l = shared.l[p] + c0 / 4;
#pragma unroll
      for (int q = 0; q < (c + 3) / 4; ++q) {  // l is 0 from the diagonal's quad on, or not needed
        const float4 v = l[q];
        s[4 * q] += error * v.x, s[4 * q + 1] += error * v.y;
        s[4 * q + 2] += error * v.z, s[4 * q + 3] += error * v.w;
      }
    }
  }
  a.losses[row] += loss;
  a.clipped[row] += clipped;
}

template <int kThreads>
cudaError_t LaunchPanel(const SweepArgs& args, int first, int count, const Queue& queue) {
  constexpr int kBytes = sizeof(PanelShared<kThreads>);
  const cudaError_t set = cudaFuncSetAttribute(PanelKernel<kThreads>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (set != cudaSuccess) return set;
  const int blocks = (args.n + kThreads - 1) / kThreads;
  PanelKernel<kThreads><<<blocks, kThreads, kBytes, queue.stream>>>(args, first, count);
  return cudaGetLastError();
}

constexpr int kColumnThreads = 256;

__global__ void SortColumnsKernel(NormArgs a) {
  const int row = blockIdx.x * kColumnThreads + threadIdx.x, p = blockIdx.y;
  if (row >= a.n) return;
  a.sorted[int64_t{p} * a.n + row] = a.w[int64_t{a.order[p]} * a.n + row];
}

__global__ void AddSquaresKernel(NormArgs a, int count) {
  const int row = blockIdx.x * kWarp + threadIdx.x;
  if (row >= a.n) return;
  double sum = 0;
#pragma unroll 16
  for (int p = 0; p < count; ++p) {
    const double y = a.products[int64_t{p} * a.n + row];
    sum += y * y;
  }
  a.losses[row] += sum;
}

}  // namespace

// Few rows: a warp a block, so that they meet on as many SMs as there are.
cudaError_t SweepPanel(const SweepArgs& args, int first, int count, const Queue& queue) {
  constexpr int kFewRows = 8192;
  return args.n <= kFewRows ? LaunchPanel<kWarp>(args, first, count, queue)
                            : LaunchPanel<2 * kWarp>(args, first, count, queue);
}

cudaError_t SortColumns(const NormArgs& args, const Queue& queue) {
  const dim3 grid((args.n + kColumnThreads - 1) / kColumnThreads, args.k);
  SortColumnsKernel<<<grid, kColumnThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t AddSquares(const NormArgs& args, int count, const Queue& queue) {
  AddSquaresKernel<<<(args.n + kWarp - 1) / kWarp, kWarp, 0, queue.stream>>>(args, count);
  return cudaGetLastError();
}

}  // namespace babai::cuda
