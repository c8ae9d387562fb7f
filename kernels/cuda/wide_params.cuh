// What the kernel of wide_gemm.h is made for and told, and which part of the work a block has.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {

// Two of them idle: registers change hands by whole warpgroups.
constexpr int kWideCopyWarps = 4;

// Of a tile. A warpgroup multiplies 64 rows.
template <int kTokens_, int kRows_>
struct WideShape {
  static constexpr int kTokens = kTokens_, kRows = kRows_;
  static constexpr int kEights = kTokens / 8, kSums = kTokens / 2;  // of a lane
  static constexpr int kMultipliers = kRows * 2, kThreads = kMultipliers + kWideCopyWarps * kLanes;
  // What the copying warps have given, shared out: 24 + 2 x 240 <= 3 x 168, 24 + 3 x 160 <= 4 x
  // 128, 24 + 4 x 112 <= 5 x 96. More would wait for ever.
  static constexpr int kRegisters = kRows == 128 ? 240 : kRows == 192 ? 160 : 112;
  // Groups of products under way while the next fragments are made; the largest tile leaves no
  // registers for it, and there the other warpgroups' products fill the time.
  static constexpr int kPending = kRows == 256 && kTokens == 128 ? 0 : 1;
};

// Of scales, to what NormedScale takes: times two powers of two, as pairs for rows g and g + 8;
// what comes of it is too small by `factor`.
struct ScaleNorm {
  uint32_t first, second;
  float factor;
};

// What the host works out once a launch.
struct WideGemmParams {
  const uint8_t* weights;
  void* y;
  uint32_t* workspace;
  GemmEnds ends;
  int m, n;
  int token_tiles, tiles, strips, k_tiles, unit_tiles, stages;
  int parts, waves;
  int part_tiles, last_part_tiles;  // k tiles of a part of a wave, of the last wave
  int tile_stride;                  // from a cluster's tile to its next
  int reload;                       // how often a k tile loads a scale: 1, 2, 4; 0: one group a row
  int group_shift;                  // log2 of the steps of 16 columns that share one
  bool asymmetric;
  uint32_t exponent;  // GroupScale::kExponent: dequant.cuh says why it is not a constant
  ScaleNorm norm;     // where kNormed says so
  int record_bytes, tile_bytes, zeros_offset;  // zeros_offset: of a tile's zeros behind its scales
  int64_t strip_bytes, row_scales, row_zeros;
  int stage_bytes, x_offset;  // in shared memory: of a stage, x in it
};
constexpr int kWideRing = 1024;  // its offset, behind the barriers: operand B wants multiples

// What, besides the width, picks the kernel.
struct WideGemmFormat {
  int tokens, rows;
  Dtype dtype;
};

// A block's part of k and first tile.
struct WidePlace {
  int part, wave, first_tile;
  int k_begin, k_tiles, units;

  __device__ __forceinline__ explicit WidePlace(const WideGemmParams& p) {
    const int cluster = blockIdx.x / p.parts;
    part = blockIdx.x - cluster * p.parts;
    first_tile = cluster / p.waves, wave = cluster - first_tile * p.waves;
    const int of_part = wave + 1 < p.waves ? p.part_tiles : p.last_part_tiles;
    k_begin = min(wave * p.parts * p.part_tiles + part * of_part, p.k_tiles);
    k_tiles = min(of_part, p.k_tiles - k_begin);
    units = (k_tiles + p.unit_tiles - 1) / p.unit_tiles;
  }
  __device__ __forceinline__ int Tiles(const WideGemmParams& p, int unit) const {
    return min(p.unit_tiles, k_tiles - unit * p.unit_tiles);
  }
};

// Where in the ring.
struct WideStage {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

}  // namespace babai::cuda
