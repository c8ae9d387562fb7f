// What the kernel of tile_gemm.h is made for and told, and how a block walks through its work.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_gemm.h"

namespace babai::cuda {

constexpr int kTileCopyWarps = 4;  // a warpgroup: registers change hands by whole warpgroups

constexpr int kTileEights = kTileGemmTokens / 8;
// Two warpgroups multiply: warps by strip, then by part of a unit's k tiles.
constexpr int kTileMultipliers = kTileGemmRows * 2;
constexpr int kTileThreads = kTileMultipliers + kTileCopyWarps * kLanes;
constexpr int kTileStrips = kTileGemmRows / kStripRows;
constexpr int kTileParts = kTileMultipliers / kLanes / kTileStrips;
// What the copying warps have given, shared out: 24 + 2 x 104 <= 3 x 80, so that the next kernel's
// blocks can be there already. More would wait for ever.
constexpr int kTileRegisters = 104;

// What the host works out once a launch.
struct TileGemmParams {
  const uint8_t* weights;
  void* y;
  uint32_t* workspace;
  GemmEnds ends;
  int m, n;
  int strips, k_tiles, unit_tiles, stages;
  int units;         // of a tile: the stretches of k that a stage of the ring holds
  int share, extra;  // units of a block: the first `extra` blocks have one more
  bool asymmetric;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  int record_bytes, tile_bytes;
  int64_t strip_bytes, row_scales, row_zeros;
  // In shared memory: of a stage, x in it, the first stage, and what RecordWorker::Meet() needs.
  int stage_bytes, x_offset, ring, mail;

  __device__ __forceinline__ int Begin(int block) const {
    return block * share + min(block, extra);
  }
};

// A block's units, a tile at a time, from its last to its first: so sums that another block waits
// for are written first, and what it waits for itself it waits for last.
struct TileCursor {
  int tile, unit, end;  // the tile, the next unit of it, behind the last
  int first_tile, first_unit;
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ TileCursor(const TileGemmParams& p, int begin, int behind) {
    first_tile = begin / p.units, first_unit = begin - first_tile * p.units;
    tile = (behind - 1) / p.units, end = behind - tile * p.units;
    unit = tile == first_tile ? first_unit : 0;
  }
  __device__ __forceinline__ void NextStage(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
  __device__ __forceinline__ void NextTile(int units) {
    --tile, end = units, unit = tile == first_tile ? first_unit : 0;
  }
};

}  // namespace babai::cuda
