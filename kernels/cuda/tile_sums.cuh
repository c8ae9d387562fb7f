// What tile_gemm.h's multiplying warps do with their sums: store them, or share a tile with other
// blocks through the workspace.
#pragma once

#include "kernels/cuda/gemm_ends.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/tile_params.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A warp's sums of a tile: 16 rows of each of kRowTiles m64 blocks, in the order of the
// accumulators of m16n8k16: for each eight tokens row g of tokens 2t and 2t + 1, then row g + 8.
template <typename T, typename Shape>
struct TileSums {
  static constexpr int kTokens = Shape::kTokens;
  static constexpr int kEights = Shape::kEights, kSums = Shape::kSums;

  const TileGemmParams& p;
  int warp, lane;  // warp: of the multiplying ones
  float sums[kSums];

  // Of a matrix's 16-row tiles, this warp's.
  __device__ __forceinline__ int Tile16(int tile) const {
    // Rows in the low bits, then the warps' parts of a k tile.
    constexpr int kTiles = Shape::kRecordTiles, kRowParts = 8 / kTiles;
    const int part = warp / kRowParts;
    const int within = warp % kRowParts * kTiles + (kTiles == 4 ? part % 2 * 2 + part / 2 : part);
    return RowTile(tile) * (Shape::kRows / kTileRows) + within;
  }
  // A block's tile may reach past the matrix, whose 16-row tiles end with its last strip.
  __device__ __forceinline__ int InMatrix(int tile16) const {
    return min(tile16, p.strips * kStripTiles - 1);
  }
  __device__ __forceinline__ int RowTile(int tile) const {
    return p.token_tiles == 1 ? tile : tile / p.token_tiles;
  }

  // y of eight tokens: four sums of a lane.
  __device__ __forceinline__ void StoreEight(int tile, int eight, const float (&v)[4]) const {
    const int token = (tile - RowTile(tile) * p.token_tiles) * kTokens + eight * 8 + lane % 4 * 2;
    const int row = Tile16(tile) * kTileRows + lane / 4;
    if (p.ends.output == GemmOutput::kGate) return StoreGated(token, row / 2, v);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int down = j / 2 * 8;
      if (token + j % 2 >= p.m || row + down >= p.n) continue;
      const int64_t at = int64_t{token + j % 2} * p.n + row + down;
      if (p.ends.output == GemmOutput::kAdd) {
        AddToMemory(static_cast<float*>(p.y) + at, v[j]);
      } else {
        static_cast<T*>(p.y)[at] = FromFloat<T>(v[j]);
      }
    }
  }
  // A lane has gate (row g) and up (row g + 8) of the same features.
  __device__ __forceinline__ void StoreGated(int token, int half_row, const float (&v)[4]) const {
    const int feature = half_row / 8 * 8 + lane / 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (token + j >= p.m || feature >= p.n / 2) continue;
      static_cast<T*>(p.y)[int64_t{token + j} * (p.n / 2) + feature] =
          FromFloat<T>(Gated(p.ends.gate, v[j], v[j + 2]));
    }
  }
  __device__ __forceinline__ void Store(int tile) const {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      const float v[4] = {sums[e * 4], sums[e * 4 + 1], sums[e * 4 + 2], sums[e * 4 + 3]};
      StoreEight(tile, e, v);
    }
  }

  // A block's sums of a tile in the workspace: for each eight tokens, the threads side by side.
  __device__ __forceinline__ uint32_t* Partial(int block) const {
    return p.workspace + int64_t{block} * Shape::kRows * kTokens + threadIdx.x * 4;
  }
  static constexpr int kNextEight = Shape::kMultipliers * 4;  // words
  __device__ __forceinline__ void StorePartial() const {
    uint32_t* to = Partial(blockIdx.x);
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      StorePartialSums(to + e * kNextEight,
                       {sums[e * 4], sums[e * 4 + 1], sums[e * 4 + 2], sums[e * 4 + 3]});
    }
  }
  __device__ __forceinline__ void AddPartial(int block) {
    AddPartialSums<kEights>(Partial(block), kNextEight, sums);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
