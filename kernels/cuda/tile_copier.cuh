// The half of tile_gemm.h's kernel that copies.
#pragma once

#include "kernels/cuda/tile_params.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A copying warp: its share of the strips of W for a ring full of stages at once, its share of x
// when the preceding kernel is done. One lane does it all: copies take a warp's common registers.
template <typename Shape>
struct TileCopier {
  static constexpr int kTokens = Shape::kTokens, kStrips = Shape::kRows / kStripRows;

  const TileGemmParams& p;
  const CUtensorMap* map;
  uint32_t smem, full, empty;
  int warp;

  __device__ __forceinline__ int Tiles(const TileCursor& at) const {
    return min(p.unit_tiles, p.k_tiles - at.unit * p.unit_tiles);
  }
  // Boxes of x that this warp copies for a unit.
  __device__ __forceinline__ int Boxes(int tiles) const {
    return (tiles * (kTileCols / kXBoxCols) + kTileCopyWarps - 1 - warp) / kTileCopyWarps;
  }
  __device__ __forceinline__ void CopyWeights(const TileCursor& at, int strip0) const {
    const int tiles = Tiles(at), bytes = tiles * p.record_bytes, strips = p.strips - strip0;
    const uint32_t bar = full + at.stage * 8, to = smem + p.ring + at.stage * p.stage_bytes;
    const int mine = min(kStrips, strips) + kTileCopyWarps - 1 - warp;
    BarrierArriveExpect(bar,
                        mine / kTileCopyWarps * bytes + Boxes(tiles) * kTokens * kXBoxCols * 2);
#pragma unroll
    for (int i = 0; i < kStrips / kTileCopyWarps; ++i) {
      const int strip = warp + i * kTileCopyWarps;
      if (strip < strips) {
        BulkCopy(to + strip * p.unit_tiles * p.record_bytes,
                 p.weights + (strip0 + strip) * p.strip_bytes +
                     int64_t{at.unit * p.unit_tiles} * p.record_bytes,
                 bytes, bar);
      }
    }
  }
  __device__ __forceinline__ void CopyX(const TileCursor& at, int token0) const {
    const uint32_t to = smem + p.ring + at.stage * p.stage_bytes + p.x_offset;
    const int boxes = Tiles(at) * (kTileCols / kXBoxCols);
#pragma unroll 1
    for (int box = warp; box < boxes; box += kTileCopyWarps) {
      TensorCopy(to + box * kTokens * kXBoxCols * 2, map,
                 at.unit * p.unit_tiles * kTileCols + box * kXBoxCols, token0, full + at.stage * 8);
    }
  }
  // A cursor and the place of its tile, worked out once a tile.
  struct Place {
    TileCursor at;
    int strip0, token0;

    __device__ __forceinline__ Place(const TileGemmParams& p, const TileCursor& cursor)
        : at(cursor) {
      Locate(p);
    }
    __device__ __forceinline__ void Locate(const TileGemmParams& p) {
      const int row_tile = p.token_tiles == 1 ? at.tile : at.tile / p.token_tiles;
      strip0 = row_tile * kStrips, token0 = (at.tile - row_tile * p.token_tiles) * kTokens;
    }
    __device__ __forceinline__ void Next(const TileGemmParams& p) {
      at.NextStage(p.stages);
      if (++at.unit == at.end) at.NextTile(p.units), Locate(p);
    }
  };
  __device__ void Run(const TileCursor& first, int units) const {
    Place weights(p, first), x = weights;
    const int ahead = min(units, p.stages);
    for (int i = 0; i < ahead; ++i) CopyWeights(weights.at, weights.strip0), weights.Next(p);
    LetNextKernelStart();
    WaitForPrecedingKernel();
    for (int i = 0; i < ahead; ++i) CopyX(x.at, x.token0), x.Next(p);
    for (int i = ahead; i < units; ++i) {
      BarrierWait(empty + x.at.stage * 8, x.at.parity ^ 1);
      CopyWeights(x.at, x.strip0), CopyX(x.at, x.token0), x.Next(p);
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
