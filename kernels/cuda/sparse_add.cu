#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sparse_add.h"

namespace babai::cuda {
namespace {

constexpr int kTokens = 8;  // of a lane, where there are many
constexpr int kSide = 32;   // of a tile that is transposed
constexpr int kTileThreads = 256;
constexpr int kBlockRows = 16;  // of S, one a warp: also the warps of a block

constexpr int RoundUp(int v, int unit) { return (v + unit - 1) / unit * unit; }

// --- many tokens: x by columns

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

// A warp a row: its lanes share out the entries and the tokens. The block's sums meet in shared
// memory, since neighbours of y are rows.
template <typename T>
__global__ void SparseAddKernel(Params p) {
  StartStep();
  SHARED_MEMORY(smem);
  float* const sums = reinterpret_cast<float*>(smem);  // [tokens of the block][kBlockRows + 1]
  constexpr int kPitch = kBlockRows + 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row0 = blockIdx.x * kBlockRows, row = row0 + warp;
  const int tokens = p.token_lanes * kTokens, token0 = blockIdx.y * tokens;
  const int mine = lane % p.token_lanes * kTokens;
  const bool wanted = token0 + mine < p.m;
  float sum[kTokens] = {};
  if (row < p.n && wanted) {
    const T* const x = static_cast<const T*>(p.x) + token0 + mine;
    const int end = p.s.row_begin[row + 1];
    for (int i = p.s.row_begin[row] + lane / p.token_lanes; i < end; i += kWarp / p.token_lanes) {
      const float value = p.s.values[i];
      const auto v =
          *reinterpret_cast<const Tokens<T, kTokens>*>(x + int64_t{p.s.columns[i]} * p.pitch);
#pragma unroll
      for (int j = 0; j < kTokens; ++j) sum[j] = fmaf(value, ToFloat(v.v[j]), sum[j]);
    }
  }
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
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

// --- few tokens: their x, whole, in shared memory

constexpr int kFewTokens = 8;
constexpr int64_t kMostXBytes = int64_t{128} << 10;  // of a block: entries are read once a block
constexpr int kMostWarpRows = 8;

struct FewParams {
  const void* x;  // [m, k]
  void* y;        // [m, n]
  SparseMatrix s;
  int m, n, k;
};

// An entry of a row, one a lane; of value 0 where there is none.
struct Entry {
  float value;
  int column;

  __device__ __forceinline__ void Load(const SparseMatrix& s, int at, int end) {
    value = 0, column = 0;
    if (at < end) value = __ldg(s.values + at), column = __ldg(s.columns + at);
  }
};

// A warp has kRows rows. Entries are constant: each row's first ones are read before the preceding
// kernel's results are waited for, and the rest brought to L2.
template <typename T, int kCount, int kRows>
__global__ void __launch_bounds__(kBlockRows* kWarp) FewTokensKernel(FewParams p) {
  LetNextKernelStart();
  SHARED_MEMORY(smem);
  T* const x = reinterpret_cast<T*>(smem);  // [kCount][k]
  float* const sums = reinterpret_cast<float*>(smem + int64_t{kCount} * p.k * sizeof(T));
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  constexpr int kAllRows = kBlockRows * kRows;
  const int row0 = blockIdx.x * kAllRows, first = warp * kRows;
  const int token0 = blockIdx.y * kCount, tokens = min(kCount, p.m - token0);
  // Lane i: where the warp's row i begins.
  const int bounds = __ldg(p.s.row_begin + min(row0 + first + min(lane, kRows), p.n));
  Entry firsts[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    firsts[r].Load(p.s, __shfl_sync(kAllLanes, bounds, r) + lane,
                   __shfl_sync(kAllLanes, bounds, r + 1));
  }
  constexpr int kLineEntries = 32;  // of 128 bytes of values, and of 64 of columns
  const int last = __shfl_sync(kAllLanes, bounds, kRows);
  for (int at = __shfl_sync(kAllLanes, bounds, 0) + lane * kLineEntries; at < last;
       at += kWarp * kLineEntries) {
    PrefetchToL2(p.s.values + at), PrefetchToL2(p.s.columns + at);
  }
  WaitForPrecedingKernel();
  constexpr int kPiece = 16 / sizeof(T);
  for (int i = threadIdx.x; i < kCount * p.k / kPiece; i += kBlockRows * kWarp) {
    const int token = i * kPiece / p.k;
    const T* from = static_cast<const T*>(p.x) + int64_t{token0} * p.k + i * kPiece;
    reinterpret_cast<uint4*>(x)[i] =
        token < tokens ? *reinterpret_cast<const uint4*>(from) : uint4{};
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int end = __shfl_sync(kAllLanes, bounds, r + 1);
    float sum[kCount] = {};
    const auto add = [&](const Entry& entry) {
#pragma unroll
      for (int t = 0; t < kCount; ++t)
        sum[t] = fmaf(entry.value, ToFloat(x[t * p.k + entry.column]), sum[t]);
    };
    add(firsts[r]);
    constexpr int kAtOnce = 4;  // under way
#pragma unroll 1
    for (int at = __shfl_sync(kAllLanes, bounds, r) + kWarp; at < end; at += kAtOnce * kWarp) {
      Entry some[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) some[i].Load(p.s, at + i * kWarp + lane, end);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) add(some[i]);
    }
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      sum[t] = WarpSum(sum[t]);
      if (lane == 0) sums[t * kAllRows + first + r] = sum[t];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tokens * kAllRows; i += kBlockRows * kWarp) {
    const int row = row0 + i % kAllRows;
    if (row >= p.n) continue;
    T* const y = static_cast<T*>(p.y) + int64_t{token0 + i / kAllRows} * p.n + row;
    *y = FromFloat<T>(ToFloat(*y) + sums[i]);
  }
}

template <typename T, int kCount, int kRows>
cudaError_t LaunchRows(const SparseAddArgs& a, const Queue& queue) {
  constexpr int kAllRows = kBlockRows * kRows;
  const dim3 grid((a.n + kAllRows - 1) / kAllRows, (a.m + kCount - 1) / kCount);
  const int64_t shared = kCount * (int64_t{a.k} * sizeof(T) + kAllRows * int64_t{sizeof(float)});
  return Launch(FewTokensKernel<T, kCount, kRows>, grid, kBlockRows * kWarp, shared, queue,
                FewParams{a.x, a.y, a.s, a.m, a.n, a.k});
}

// Few rows want all of the device, many must not read x too often.
template <typename T, int kCount>
cudaError_t LaunchFew(const SparseAddArgs& a, const Queue& queue) {
  constexpr int kManyRows = 8192;
  return a.n <= kManyRows ? LaunchRows<T, kCount, 2>(a, queue)
                          : LaunchRows<T, kCount, kMostWarpRows>(a, queue);
}

template <typename T>
cudaError_t RunFew(const SparseAddArgs& a, const Queue& queue) {
  int device = 0, shared = 0;
  cudaError_t known = cudaGetDevice(&device);
  if (known == cudaSuccess) {
    known = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (known != cudaSuccess) return known;
  constexpr int64_t kSums = kFewTokens * kBlockRows * kMostWarpRows * sizeof(float);
  const int64_t fit = std::min(kMostXBytes, shared - kSums) / (a.k * int64_t{sizeof(T)});
  if (a.m > 4 && fit >= 8) return LaunchFew<T, 8>(a, queue);
  if (a.m > 2 && fit >= 4) return LaunchFew<T, 4>(a, queue);
  if (a.m > 1 && fit >= 2) return LaunchFew<T, 2>(a, queue);
  return fit >= 1 ? LaunchFew<T, 1>(a, queue) : cudaErrorInvalidValue;
}

template <typename T>
cudaError_t RunMany(const SparseAddArgs& a, const Queue& queue) {
  const int padded = RoundUp(a.m, kTokens);
  const dim3 tiles((a.k + kSide - 1) / kSide, (padded + kSide - 1) / kSide);
  const cudaError_t done =
      Launch(TransposeKernel<T>, tiles, kTileThreads, kSide * (kSide + 2) * sizeof(T), queue,
             static_cast<const T*>(a.x), a.m, a.k, padded, static_cast<T*>(a.transposed));
  if (done != cudaSuccess) return done;
  Params p{a.transposed, a.y, a.s, a.m, a.n, padded, /*token_lanes=*/1};
  while (p.token_lanes < kWarp && p.token_lanes * kTokens < padded) p.token_lanes *= 2;
  const int tokens = p.token_lanes * kTokens;
  const dim3 grid((a.n + kBlockRows - 1) / kBlockRows, (a.m + tokens - 1) / tokens);
  const int64_t shared = int64_t{tokens} * (kBlockRows + 1) * static_cast<int64_t>(sizeof(float));
  return Launch(SparseAddKernel<T>, grid, kBlockRows * kWarp, shared, queue, p);
}

template <typename T>
cudaError_t Run(const SparseAddArgs& a, const Queue& queue) {
  if (a.k % 8 != 0 || a.k > kMostSparseCols) return cudaErrorInvalidValue;
  return a.m <= kFewTokens ? RunFew<T>(a, queue) : RunMany<T>(a, queue);
}

}  // namespace

cudaError_t SparseAdd(const SparseAddArgs& args, const Queue& queue) {
  return args.dtype == Dtype::kFp16 ? Run<__half>(args, queue) : Run<__nv_bfloat16>(args, queue);
}

}  // namespace babai::cuda
