// What the kernel of tile_gemm.h is made for and told, and how a block walks through its work.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_gemm.h"

namespace babai::cuda {

constexpr int kTileCopyWarps = 4;      // a warpgroup: registers change hands by whole warpgroups

// Of a tile of 128 rows. Two warpgroups multiply.
template <int kTokens_>
struct TileShape {
  static constexpr int kTokens = kTokens_, kRows = kTileGemmRows;
  static constexpr int kEights = kTokens / 8, kSums = kTokens / 2;  // of a lane
  static constexpr int kMultipliers = kRows * 2, kThreads = kMultipliers + kTileCopyWarps * kLanes;
  // What the copying warps have given, shared out: 24 + 2 x 104 <= 3 x 80, so that the next kernel's
  // blocks can be there already. More would wait for ever.
  static constexpr int kRegisters = 104;
  // Tiles of 16 rows of a warp; more for more tokens would spill registers.
  static constexpr int kRecordTiles = kTokens <= 8 ? 4 : 2;
};

// What the host works out once a launch.
struct TileGemmParams {
  const uint8_t* weights;
  void* y;
  uint32_t* workspace;
  GemmEnds ends;
  int m, n;
  int token_tiles, strips, k_tiles, unit_tiles, stages;
  int units;         // of a tile: the stretches of k that a stage of the ring holds
  int share, extra;  // units of a block: the first `extra` blocks have one more
  int reload;        // how often a k tile loads a scale: 1, 2, 4; 0: one group a row
  int group_shift;   // log2 of the steps of 16 columns that share one
  bool asymmetric;
  uint32_t exponent;  // GroupScale::kExponent: dequant.cuh says why it is not a constant
  int record_bytes, tile_bytes, zeros_offset;  // zeros_offset: of a tile's zeros behind its scales
  int64_t strip_bytes, row_scales, row_zeros;
  // In shared memory: of a stage, x in it, the first stage, and what RecordWorker::Swap() needs.
  int stage_bytes, x_offset, ring, mail;

  __device__ __forceinline__ int Begin(int block) const {
    return block * share + min(block, extra);
  }
};

// What, besides the width, picks the kernel.
struct TileGemmFormat {
  int tokens, group;
  Dtype dtype;
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
