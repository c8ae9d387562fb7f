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
  // A thread's own columns, so that all are on their way at once. Weights become errors.
  float sums[kPanel][kThreads], errors[kPanel][kThreads];
  float diag[kPanel], inverse[kPanel];
  int column[kPanel];
};

__device__ __forceinline__ void CopyAsync4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(SharedAddress(to)),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ __forceinline__ void CopyAsyncWaitAll() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

template <int kThreads>
__device__ __forceinline__ void LoadPanel(const SweepArgs& a, int panel, int count, int row,
                                          PanelShared<kThreads>& shared) {
  const int first = panel * kPanel;
  const float* block = a.blocks + int64_t{panel} * kPanel * kPanel;
  for (int i = threadIdx.x; i < kPanel * kPanel / 4; i += kThreads) {
    CopyAsync16(SharedAddress(&shared.l[0][0] + i), block + 4 * i);
  }
  for (int i = threadIdx.x; i < kPanel; i += kThreads) {
    const int p = first + min(i, count - 1);
    shared.diag[i] = a.diag[p], shared.inverse[i] = a.inverse[p], shared.column[i] = a.order[p];
  }
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    CopyAsync4(&shared.sums[i][threadIdx.x], a.sums + int64_t{first + i} * a.n + row);
    CopyAsync4(&shared.errors[i][threadIdx.x], a.w + int64_t{shared.column[i]} * a.n + row);
  }
  CopyAsyncWaitAll();
  __syncthreads();
}

// s[j] += error * l[j] for j of the first kQuads quads.
template <int kQuads>
__device__ __forceinline__ void AddScaled(float error, const float4* l, float (&s)[kSub]) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const float4 v = l[q];
    s[4 * q] += error * v.x, s[4 * q + 1] += error * v.y;
    s[4 * q + 2] += error * v.z, s[4 * q + 3] += error * v.w;
  }
}

__device__ __forceinline__ float ToTf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return __uint_as_float(bits);
}

// What a row has so far.
struct RowLoss {
  double loss = 0;
  int clipped = 0;
};

// Columns [kC, 0] of a sub-panel that begins at c0, the last first: each one's error is added to
// the sums of those before it.
template <int kC, int kThreads>
__device__ __forceinline__ void RoundColumns(const SweepArgs& a, PanelShared<kThreads>& shared,
                                             int c0, int count, int row, float (&s)[kSub],
                                             const float (&scale)[kSub],
                                             const float (&inverse_scale)[kSub],
                                             const float (&zero)[kSub], RowLoss& sum) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integers, ties to even
  const int p = c0 + kC;
  if (p < count) {
    const float w = shared.errors[p][threadIdx.x];
    const float u = w + s[kC] * shared.inverse[p];
    // Beyond 2^22 this is no integer, but as far outside the grid.
    const float wanted = ((u * inverse_scale[kC] + kMagic) - kMagic) + zero[kC];
    const float stored = Clamped(wanted, 0.0f, static_cast<float>(a.max_code));
    const float value = scale[kC] * (stored - zero[kC]), error = w - value;
    AddScaled<(kC + 3) / 4>(error, shared.l[p] + c0 / 4, s);
    const double y = shared.diag[p] * (u - value);
    sum.loss += y * y;
    sum.clipped += stored != wanted;
    shared.errors[p][threadIdx.x] = error;
    a.codes[int64_t{shared.column[p]} * a.n + row] = static_cast<uint8_t>(stored);
  }
  if constexpr (kC > 0) {
    RoundColumns<kC - 1>(a, shared, c0, count, row, s, scale, inverse_scale, zero, sum);
  }
}

// The errors as the products take them, zeros past the last column.
template <int kThreads>
__device__ __forceinline__ void StoreErrors(const SweepArgs& a, int place, int count, int row,
                                            const PanelShared<kThreads>& shared) {
  const int64_t part = int64_t{kPanel} * a.n;
  float* out = a.errors + 3 * part * place + row;
  for (int i = 0; i < kPanel; ++i, out += a.n) {
    const float error = i < count ? shared.errors[i][threadIdx.x] : 0.0f, high = ToTf32(error);
    out[0] = high, out[part] = high, out[2 * part] = error - high;
  }
}

// One row a thread, columns kSub at a time: what later ones of the panel ask is summed first, then
// the sums follow each rounding in registers.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) PanelKernel(SweepArgs a, int panel, int place) {
  extern __shared__ __align__(16) uint8_t memory[];
  PanelShared<kThreads>& shared = *reinterpret_cast<PanelShared<kThreads>*>(memory);
  const int count = min(kPanel, a.k - panel * kPanel);
  const int row = blockIdx.x * kThreads + threadIdx.x;
  LoadPanel(a, panel, count, min(row, a.n - 1), shared);
  if (row >= a.n) return;
  RowLoss sum;
#pragma unroll 1
  for (int c0 = (count - 1) / kSub * kSub; c0 >= 0; c0 -= kSub) {
    float s[kSub], scale[kSub], inverse_scale[kSub], zero[kSub];
#pragma unroll
    for (int c = 0; c < kSub; ++c) {  // every load before the first use
      const int p = min(c0 + c, count - 1);
      const int64_t at = int64_t{shared.column[p] / a.group} * a.n + row;
      s[c] = shared.sums[p][threadIdx.x];
      scale[c] = __half2float(__ushort_as_half(a.scales[at]));
      zero[c] = static_cast<float>(a.zeros[at]);
    }
    for (int p = c0 + kSub; p < count; ++p) {
      AddScaled<kSub / 4>(shared.errors[p][threadIdx.x], shared.l[p] + c0 / 4, s);
    }
#pragma unroll
    for (int c = 0; c < kSub; ++c) inverse_scale[c] = 1.0f / scale[c];
    RoundColumns<kSub - 1>(a, shared, c0, count, row, s, scale, inverse_scale, zero, sum);
  }
  StoreErrors(a, place, count, row, shared);
  a.losses[row] += sum.loss;
  a.clipped[row] += sum.clipped;
}

template <int kThreads>
cudaError_t LaunchPanel(const SweepArgs& args, int panel, int place, const Queue& queue) {
  constexpr int kBytes = sizeof(PanelShared<kThreads>);
  const cudaError_t set = cudaFuncSetAttribute(PanelKernel<kThreads>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (set != cudaSuccess) return set;
  const int blocks = (args.n + kThreads - 1) / kThreads;
  PanelKernel<kThreads><<<blocks, kThreads, kBytes, queue.stream>>>(args, panel, place);
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

// Few rows: a warp a block, so that they meet on as many SMs as there are; that also fits every
// device. Many: four warps, one for each of an SM's schedulers, that share a factor's block.
cudaError_t SweepPanel(const SweepArgs& args, int panel, int place, const Queue& queue) {
  constexpr int kFewRows = 8192, kWarps = 4;
  int device = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  const bool wide =
      args.n > kFewRows && shared >= static_cast<int>(sizeof(PanelShared<kWarps * kWarp>));
  return wide ? LaunchPanel<kWarps * kWarp>(args, panel, place, queue)
              : LaunchPanel<kWarp>(args, panel, place, queue);
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
