// What tile_gemm.h's multiplying warps do with their sums: store them, or share a tile with other
// blocks through the workspace.
#pragma once

#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/store_sums.cuh"
#include "kernels/cuda/tile_params.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A warp's sums of 16 rows of a tile, in the order of the accumulators of m16n8k16: for each eight
// tokens row g of tokens 2t and 2t + 1, then row g + 8.
template <typename T>
struct TileSums {
  const TileGemmParams& p;
  int warp, lane;  // warp: of the multiplying ones
  float sums[kTileEights * 4];

  __device__ __forceinline__ int Strip() const { return warp % kTileStrips; }  // of the tile
  __device__ __forceinline__ int Part() const { return warp / kTileStrips; }
  // Of the matrix's 16-row tiles, this warp's.
  __device__ __forceinline__ int Tile16(int tile) const {
    return (tile * kTileStrips + Strip()) * kStripTiles + Part();
  }
  __device__ __forceinline__ void Store(int tile) const {
    const int row = Tile16(tile) * kTileRows + lane / 4;
#pragma unroll
    for (int e = 0; e < kTileEights; ++e) {
      const float v[4] = {sums[e * 4], sums[e * 4 + 1], sums[e * 4 + 2], sums[e * 4 + 3]};
      StoreSums<T>(p.ends, p.y, p.m, p.n, e * 8 + lane % 4 * 2, row, v);
    }
  }

  // A block's sums of a tile in the workspace: for each eight tokens, the threads side by side.
  static constexpr int kBlockWords = kTileGemmRows * kTileGemmTokens;
  static constexpr int kNextEight = kTileMultipliers * 4;
  __device__ __forceinline__ uint32_t* Partial(int block) const {
    return p.workspace + int64_t{block} * kBlockWords + threadIdx.x * 4;
  }
  __device__ __forceinline__ void StorePartial() const {
    uint32_t* to = Partial(blockIdx.x);
#pragma unroll
    for (int e = 0; e < kTileEights; ++e) {
      StorePartialSums(to + e * kNextEight,
                       {sums[e * 4], sums[e * 4 + 1], sums[e * 4 + 2], sums[e * 4 + 3]});
    }
  }
  // What `count` blocks before this one have left.
  __device__ __forceinline__ void AddPartials(int count) {
    int block = blockIdx.x - 1;
#pragma unroll 1
    for (; count >= 4; count -= 4, block -= 4) AddBlocks<4>(block);
    if (count == 3) AddBlocks<3>(block);
    if (count == 2) AddBlocks<2>(block);
    if (count == 1) AddBlocks<1>(block);
  }
  template <int kBlocks>
  __device__ __forceinline__ void AddBlocks(int last) {
    AddPartialSums<kBlocks, kTileEights>(Partial(last), kBlockWords, kNextEight, sums);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
