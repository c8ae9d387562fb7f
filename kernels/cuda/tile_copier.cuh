// The half of tile_gemm.h's kernel that copies.
#pragma once

#include "kernels/cuda/tile_params.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A copying warp: its share of the strips of W for a ring full of stages at once, its share of x
// when the preceding kernel is done. One lane does it all: copies take a warp's common registers.
struct TileCopier {
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
  __device__ __forceinline__ void CopyWeights(const TileCursor& at) const {
    const int strip0 = at.tile * kTileStrips;
    const int tiles = Tiles(at), bytes = tiles * p.record_bytes, strips = p.strips - strip0;
    const uint32_t bar = full + at.stage * 8, to = smem + p.ring + at.stage * p.stage_bytes;
    const int mine = min(kTileStrips, strips) + kTileCopyWarps - 1 - warp;
    BarrierArriveExpect(
        bar, mine / kTileCopyWarps * bytes + Boxes(tiles) * kTileGemmTokens * kXBoxCols * 2);
#pragma unroll
    for (int i = 0; i < kTileStrips / kTileCopyWarps; ++i) {
      const int strip = warp + i * kTileCopyWarps;
      if (strip < strips) {
        BulkCopy(to + strip * p.unit_tiles * p.record_bytes,
                 p.weights + (strip0 + strip) * p.strip_bytes +
                     int64_t{at.unit * p.unit_tiles} * p.record_bytes,
                 bytes, bar);
      }
    }
  }
  __device__ __forceinline__ void CopyX(const TileCursor& at) const {
    const uint32_t to = smem + p.ring + at.stage * p.stage_bytes + p.x_offset;
    const int boxes = Tiles(at) * (kTileCols / kXBoxCols);
#pragma unroll 1
    for (int box = warp; box < boxes; box += kTileCopyWarps) {
      TensorCopy(to + box * kTileGemmTokens * kXBoxCols * 2, map,
                 at.unit * p.unit_tiles * kTileCols + box * kXBoxCols, 0, full + at.stage * 8);
    }
  }
  __device__ __forceinline__ void Next(TileCursor* at) const {
    at->NextStage(p.stages);
    if (++at->unit == at->end) at->NextTile(p.units);
  }
  __device__ void Run(const TileCursor& first, int units) const {
    TileCursor weights = first, x = first;
    const int ahead = min(units, p.stages);
    for (int i = 0; i < ahead; ++i) CopyWeights(weights), Next(&weights);
    LetNextKernelStart();
    WaitForPrecedingKernel();
    for (int i = 0; i < ahead; ++i) CopyX(x), Next(&x);
    for (int i = ahead; i < units; ++i) {
      BarrierWait(empty + x.stage * 8, x.parity ^ 1);
      CopyWeights(x), CopyX(x), Next(&x);
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
