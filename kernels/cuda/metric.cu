#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/metric.h"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;

__global__ void DiagonalKernel(DiagonalArgs a) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < a.k) a.diag[i] = a.h[int64_t{i} * a.k + i];
}

__global__ void OrderMetricKernel(OrderMetricArgs a) {
  const int r = blockIdx.y, c = blockIdx.x * kThreads + threadIdx.x;
  if (c < r || c >= a.k) return;
  const int row = a.order[r], col = a.order[c];
  double value = 0;
  if (r == c) {
    value = a.diag[row];
  } else if (a.dead[row] == 0 && a.dead[col] == 0) {
    value = a.scale * a.h[int64_t{max(row, col)} * a.k + min(row, col)];
  }
  a.out[int64_t{r} * a.k + c] = value;
}

__device__ __forceinline__ float ToTf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return __uint_as_float(bits);
}

// A block turns one tile over its diagonal, through shared memory.
__global__ void TakeFactorKernel(TakeFactorArgs a) {
  __shared__ float tile[kTile][kTile + 1];
  const int row0 = blockIdx.y * kTile, col0 = blockIdx.x * kTile;  // of l
  const int x = threadIdx.x % kTile, y0 = threadIdx.x / kTile;
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    const int c = col0 + y, r = row0 + x;
    double v = 0;
    if (c < a.k && r < a.k && c <= r) v = a.factor[int64_t{c} * a.k + r];
    if (a.pivots != nullptr && c == r && c < a.k) a.pivots[c] = v;
    const float rounded = static_cast<float>(v);
    tile[x][y] = a.to_tf32 ? ToTf32(rounded) : rounded;
  }
  __syncthreads();
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    const int r = row0 + y, c = col0 + x;
    if (r < a.k && c < a.k) a.l[int64_t{r} * a.k + c] = tile[y][x];
  }
}

// A block turns one tile at or left of its panel's diagonal block.
__global__ void SplitFactorKernel(SplitFactorArgs a) {
  __shared__ float tile[kTile][kTile + 1];
  const int row0 = blockIdx.y * kTile, col0 = blockIdx.x * kTile;  // of the factor
  const int panel = row0 / kSplitRows, first = panel * kSplitRows;
  if (col0 >= first + kSplitRows) return;
  const int x = threadIdx.x % kTile, y0 = threadIdx.x / kTile;
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    const int c = col0 + y, r = row0 + x;
    tile[x][y] = r < a.k && c <= r ? static_cast<float>(a.factor[int64_t{c} * a.k + r]) : 0.0f;
  }
  __syncthreads();
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    const int r = row0 + y, c = col0 + x;
    const float v = tile[y][x];
    if (c >= first) {
      a.blocks[int64_t{r} * kSplitRows + c - first] = v;
      continue;
    }
    const float high = ToTf32(v);
    float* at = a.split + (int64_t{panel} * 3 * kSplitRows + r - first) * a.k + c;
    const int64_t next = int64_t{kSplitRows} * a.k;
    at[0] = high, at[next] = v - high, at[2 * next] = high;
  }
}

}  // namespace

cudaError_t Diagonal(const DiagonalArgs& args, const Queue& queue) {
  DiagonalKernel<<<(args.k + kThreads - 1) / kThreads, kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t OrderMetric(const OrderMetricArgs& args, const Queue& queue) {
  const dim3 grid((args.k + kThreads - 1) / kThreads, args.k);
  OrderMetricKernel<<<grid, kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t TakeFactor(const TakeFactorArgs& args, const Queue& queue) {
  const int tiles = (args.k + kTile - 1) / kTile;
  TakeFactorKernel<<<dim3(tiles, tiles), kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t SplitFactor(const SplitFactorArgs& args, const Queue& queue) {
  const int tiles = SplitPanels(args.k) * kSplitRows / kTile;
  SplitFactorKernel<<<dim3(tiles, tiles), kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

}  // namespace babai::cuda
