// What wide_gemm.h's multiplying warps do with their sums: add up what the blocks that share a tile
// have of it, and store y.
#pragma once

#include "kernels/cuda/gemm_ends.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/wide_params.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A warp's sums of a tile: 16 rows, in the order of the accumulators of m16n8k16: for each eight
// tokens row g of tokens 2t and 2t + 1, then row g + 8.
template <typename T, typename Shape>
struct WideSums {
  static constexpr int kTokens = Shape::kTokens;
  static constexpr int kEights = Shape::kEights, kSums = Shape::kSums;

  const WideGemmParams& p;
  int warp, lane;  // warp: of the multiplying ones
  float sums[kSums];

  // Of the matrix's 16-row tiles, this warp's.
  __device__ __forceinline__ int Tile16(const WidePiece& piece) const {
    return piece.row_tile * (Shape::Rows(p) / kTileRows) + warp;
  }

  // --- adding up

  // Eights of tokens of which this block has the sums, from sums[0] on: all, or after MeetPart()
  // half.
  // Worked on side by side; Eights() is a multiple.
  static constexpr int kAtOnce = kEights <= 16 ? kEights / 2 : kEights / 4;
  __device__ __forceinline__ int Eights() const { return kEights >> (p.parts - 1); }
  __device__ __forceinline__ int FirstEight() const { return p.Part(blockIdx.x) * Eights(); }

  // Of a cluster's two blocks, each gets the other's sums of one half of the tokens. `mail`: where
  // in shared memory, nobody's any more when both are here; `bar`: counts what arrives.
  __device__ __forceinline__ void MeetPart(const uint8_t* smem, uint32_t mail, uint32_t bar) {
    constexpr int kHalf = kSums / 2;
    const int next = Shape::Multipliers(p) * 16;
    if (threadIdx.x == 0) BarrierArriveExpect(bar, kEights / 2 * next);
    ClusterMeet();
    const bool second = p.Part(blockIdx.x) != 0;
    const uint32_t other = p.Part(blockIdx.x) ^ 1;
    const uint32_t to = ClusterAddress(mail + threadIdx.x * 16, other);
    const uint32_t its_bar = ClusterAddress(bar, other);
#pragma unroll
    for (int e = 0; e < kEights / 2; ++e) {
      float give[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float low = sums[e * 4 + j], high = sums[kHalf + e * 4 + j];
        give[j] = second ? low : high, sums[e * 4 + j] = second ? high : low;
      }
      ClusterStore4(to + e * next, give, its_bar);
    }
    BarrierWait(bar, 0);
    const float4* from = reinterpret_cast<const float4*>(smem + kWideRing) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < kEights / 2; ++e) {
      const float4 v = from[e * Shape::Multipliers(p)];
      sums[e * 4] += v.x, sums[e * 4 + 1] += v.y, sums[e * 4 + 2] += v.z, sums[e * 4 + 3] += v.w;
    }
  }

  // The sums that this block's counterpart in a cluster leaves in the workspace: for each eight
  // tokens, the threads side by side.
  __device__ __forceinline__ uint32_t* Partial(int cluster) const {
    const int64_t block = cluster * p.parts + p.Part(blockIdx.x);
    return p.workspace + block * (Shape::Rows(p) * kTokens >> (p.parts - 1)) + threadIdx.x * 4;
  }
  __device__ __forceinline__ int NextEight() const { return Shape::Multipliers(p) * 4; }  // words
  __device__ __forceinline__ void StorePartial() const {
    uint32_t* to = Partial(p.Cluster(blockIdx.x));
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      if (e >= Eights()) break;
      StorePartialSums(to + e * NextEight(),
                       {sums[e * 4], sums[e * 4 + 1], sums[e * 4 + 2], sums[e * 4 + 3]});
    }
  }
  // A block never waits for a later one, which might not run yet.
  __device__ __forceinline__ void AddPartial(int cluster) {
    uint32_t* from = Partial(cluster);
#pragma unroll
    for (int e = 0; e < kEights; e += kAtOnce, from += kAtOnce * NextEight()) {
      if (e >= Eights()) break;
      AddPartialSums<kAtOnce>(from, NextEight(), sums + e * 4);
    }
  }

  // --- y

  static __device__ __forceinline__ uint32_t PackPair(float a, float b) {
    const T pair[2] = {FromFloat<T>(a), FromFloat<T>(b)};
    uint32_t bits;
    __builtin_memcpy(&bits, pair, 4);
    return bits;
  }
  // Each of the kinds of output below runs through all eights without a branch in between: code
  // is fetched, once a tile, as slowly as it is run.

  // Of the lane's sums: at row g and g + 8 of tokens 2t and 2t + 1.
  template <typename Put>
  __device__ __forceinline__ void StoreEach(int token0, int row0, const Put& put) const {
    const int token = token0 + lane % 4 * 2, row = row0 + lane / 4;
    int64_t at = int64_t{token} * p.n + row;
#pragma unroll
    for (int e = 0; e < kEights; ++e, at += int64_t{8} * p.n) {
      if (e >= Eights()) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int down = j / 2 * 8;
        if (token + e * 8 + j % 2 < p.m && row + down < p.n)
          put(at + j % 2 * p.n + down, sums[e * 4 + j]);
      }
    }
  }
  // Transposed within the warp, so that four lanes write 32 bytes of one token's row.
  __device__ __forceinline__ void StoreRows(int token0, int row0) const {
    const bool odd = lane % 2 != 0;
    const int token = token0 + lane / 4, row = row0 + lane % 2 * 8 + lane / 2 % 2 * 4;
    T* to = static_cast<T*>(p.y) + int64_t{token} * p.n + row;
#pragma unroll
    for (int e0 = 0; e0 < kEights; e0 += kAtOnce) {
      if (e0 >= Eights()) break;
      uint32_t upper[kAtOnce], lower[kAtOnce];
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) {
        const float* v = sums + (e0 + e) * 4;
        upper[e] = TransposeMatrix(PackPair(v[0], v[1]));
        lower[e] = TransposeMatrix(PackPair(v[2], v[3]));
      }
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e, to += int64_t{8} * p.n) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? upper[e] : lower[e], 1);
        const uint2 four = odd ? make_uint2(other, lower[e]) : make_uint2(upper[e], other);
        if (token + (e0 + e) * 8 < p.m) *reinterpret_cast<uint2*>(to) = four;
      }
    }
  }
  // A lane has gate (row g) and up (row g + 8) of the same features.
  __device__ __forceinline__ void StoreGated(int token0, int row0) const {
    const int token = token0 + lane / 4, feature = row0 / 2 + lane % 4 * 2, features = p.n / 2;
    T* to = static_cast<T*>(p.y) + int64_t{token} * features + feature;
#pragma unroll
    for (int e = 0; e < kEights; ++e, to += int64_t{8} * features) {
      if (e >= Eights()) break;
      const float* v = sums + e * 4;
      const uint32_t pair =
          TransposeMatrix(PackPair(Gated(p.ends.gate, v[0], v[2]), Gated(p.ends.gate, v[1], v[3])));
      if (token + e * 8 < p.m) *reinterpret_cast<uint32_t*>(to) = pair;
    }
  }
  __device__ __forceinline__ void Store(const WidePiece& piece) const {
    const int token0 = piece.token_tile * kTokens + FirstEight() * 8;
    const int row0 = Tile16(piece) * kTileRows;
    if (row0 >= p.n) return;
    if (p.ends.output == GemmOutput::kGate) {
      StoreGated(token0, row0);
    } else if (p.ends.output == GemmOutput::kAdd) {
      float* y = static_cast<float*>(p.y);
      StoreEach(token0, row0, [y](int64_t at, float v) { AddToMemory(y + at, v); });
    } else if (p.n % 4 == 0 && row0 + kTileRows <= p.n) {
      StoreRows(token0, row0);
    } else {
      T* y = static_cast<T*>(p.y);
      StoreEach(token0, row0, [y](int64_t at, float v) { y[at] = FromFloat<T>(v); });
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
