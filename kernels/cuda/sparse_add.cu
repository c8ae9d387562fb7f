#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sparse_add.h"

namespace babai::cuda {
namespace {

constexpr int kTokens = 8;  // of a lane, where there is more than one in all
constexpr int kSide = 32;   // of a tile that is transposed
constexpr int kTileThreads = 256;
constexpr int kBlockRows = 16;  // of S, one a warp

constexpr int RoundUp(int v, int unit) { return (v + unit - 1) / unit * unit; }

// out[c][t] = x[t][c], tokens filled up with zeros.
template <typename T>
__global__ void TransposeKernel(const T* x, int m, int k, int padded, T* out) {
  StartStep();
  SHARED_MEMORY(smem);
  T* const tile = reinterpret_cast<T*>(smem);
  constexpr int kPitch = kSide + 2;
  const int col0 = blockIdx.x * kSide, token0 = blockIdx.y * kSide;
  const int fast = threadIdx.x % kSide, slow = threadIdx.x / kSide;
  for (int i = slow; i < kSide; i += kTileThreads / kSide) {
    const int t = token0 + i, c = col0 + fast;
    tile[i * kPitch + fast] = t < m && c < k ? x[int64_t{t} * k + c] : FromFloat<T>(0.0f);
  }
  __syncthreads();
  for (int i = slow; i < kSide; i += kTileThreads / kSide) {
    const int c = col0 + i, t = token0 + fast;
    if (c < k && t < padded) out[int64_t{c} * padded + t] = tile[fast * kPitch + i];
  }
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Tokens {
  T v[kCount];
};

struct Params {
  const void* x;  // [k, pitch]
  void* y;        // [m, n]
  SparseMatrix s;
  int m, n, pitch;
  int token_lanes;  // of a warp: a power of two; the others of them take other entries
};

// A warp a row: its lanes share out the entries, and the tokens where there are many. The block's
// sums meet in shared memory, since neighbours of y are rows.
template <typename T, int kCount>
__global__ void SparseAddKernel(Params p) {
  StartStep();
  SHARED_MEMORY(smem);
  float* const sums = reinterpret_cast<float*>(smem);  // [tokens of the block][kBlockRows + 1]
  constexpr int kPitch = kBlockRows + 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row0 = blockIdx.x * kBlockRows, row = row0 + warp;
  const int tokens = p.token_lanes * kCount, token0 = blockIdx.y * tokens;
  const int mine = lane % p.token_lanes * kCount;
  const bool wanted = token0 + mine < p.m;
  float sum[kCount] = {};
  if (row < p.n && wanted) {
    const T* const x = static_cast<const T*>(p.x) + token0 + mine;
    const int end = p.s.row_begin[row + 1];
    for (int i = p.s.row_begin[row] + lane / p.token_lanes; i < end; i += kWarp / p.token_lanes) {
      const float value = p.s.values[i];
      const auto v =
          *reinterpret_cast<const Tokens<T, kCount>*>(x + int64_t{p.s.columns[i]} * p.pitch);
#pragma unroll
      for (int j = 0; j < kCount; ++j) sum[j] = fmaf(value, ToFloat(v.v[j]), sum[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    for (int apart = kWarp / 2; apart >= p.token_lanes; apart /= 2) {
      sum[j] += __shfl_xor_sync(kAllLanes, sum[j], apart);
    }
    if (lane < p.token_lanes) sums[(mine + j) * kPitch + warp] = sum[j];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * kBlockRows; i += kBlockRows * kWarp) {
    const int t = i / kBlockRows, r = i % kBlockRows;
    if (token0 + t >= p.m || row0 + r >= p.n) continue;
    T* const y = static_cast<T*>(p.y) + int64_t{token0 + t} * p.n + row0 + r;
    *y = FromFloat<T>(ToFloat(*y) + sums[t * kPitch + r]);
  }
}

template <typename T>
cudaError_t Run(const SparseAddArgs& a, const Queue& queue) {
  Params p{a.x, a.y, a.s, a.m, a.n, /*pitch=*/1, /*token_lanes=*/1};
  if (a.m > 1) {
    const int padded = RoundUp(a.m, kTokens);
    p.x = a.transposed, p.pitch = padded;
    while (p.token_lanes < kWarp && p.token_lanes * kTokens < padded) p.token_lanes *= 2;
    const dim3 tiles((a.k + kSide - 1) / kSide, (padded + kSide - 1) / kSide);
    const cudaError_t done =
        Launch(TransposeKernel<T>, tiles, kTileThreads, kSide * (kSide + 2) * sizeof(T), queue,
               static_cast<const T*>(a.x), a.m, a.k, padded, static_cast<T*>(a.transposed));
    if (done != cudaSuccess) return done;
  }
  const int tokens = p.token_lanes * (a.m > 1 ? kTokens : 1);
  const dim3 grid((a.n + kBlockRows - 1) / kBlockRows, (a.m + tokens - 1) / tokens);
  const int64_t shared = int64_t{tokens} * (kBlockRows + 1) * static_cast<int64_t>(sizeof(float));
  const auto kernel = a.m > 1 ? SparseAddKernel<T, kTokens> : SparseAddKernel<T, 1>;
  return Launch(kernel, grid, kBlockRows * kWarp, shared, queue, p);
}

}  // namespace

cudaError_t SparseAdd(const SparseAddArgs& args, const Queue& queue) {
  return args.dtype == Dtype::kFp16 ? Run<__half>(args, queue) : Run<__nv_bfloat16>(args, queue);
}

}  // namespace babai::cuda
