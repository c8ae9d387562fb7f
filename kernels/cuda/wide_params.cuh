// What the kernel of wide_gemm.h is made for and told.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wide_division.h"

namespace babai::cuda {

// Two of them idle: registers change hands by whole warpgroups.
constexpr int kWideCopyWarps = 4;

// Of scales, to what NormedScale takes: times two powers of two, as pairs for rows g and g + 8;
// what comes of it is too small by `factor`.
struct ScaleNorm {
  uint32_t first, second;
  float factor;
};

// What the host works out once a launch.
struct WideGemmParams : WideDivision {
  const uint8_t* weights;
  void* y;
  uint32_t* workspace;
  GemmEnds ends;
  int m, n;
  int rows;  // of a tile
  int strips, stages;
  int reload;       // how often a k tile loads a scale: 1, 2, 4; 0: one group a row
  int group_shift;  // log2 of the steps of 16 columns that share one
  bool asymmetric;
  uint32_t exponent;  // GroupScale::kExponent: dequant.cuh says why it is not a constant
  ScaleNorm norm;     // where kNormed says so
  int record_bytes, tile_bytes, zeros_offset;  // zeros_offset: of a tile's zeros behind its scales
  int64_t strip_bytes, row_scales, row_zeros;
  int stage_bytes, x_offset;  // in shared memory: of a stage, x in it
};

// Tiles of kTokens tokens; a warpgroup multiplies 64 rows. At few tokens one kernel does for all
// numbers of rows up to kMostRows: where one product follows another, its code is there already.
template <int kTokens_, int kMostRows>
struct WideShape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kEights = kTokens / 8, kSums = kTokens / 2;  // of a lane
  static constexpr int kMostThreads = kMostRows * 2 + kWideCopyWarps * kLanes;
  // What the copying warps have given, shared out: 24 + 2 x 240 <= 3 x 168, 24 + 4 x 112 <= 5 x 96.
  // More would wait for ever.
  static constexpr int kRegisters = kMostRows == 128 ? 240 : 112;
  // Groups of products under way while the next fragments are made; the largest tile leaves no
  // registers for it, and there the other warpgroups' products fill the time.
  static constexpr int kPending = kMostRows == 256 && kTokens == 128 ? 0 : 1;

  static __device__ __forceinline__ int Rows(const WideGemmParams& p) {
    return kTokens <= 64 ? p.rows : kMostRows;
  }
  static __device__ __forceinline__ int Multipliers(const WideGemmParams& p) { return Rows(p) * 2; }
};

// What, besides the width, picks the kernel.
struct WideGemmFormat {
  int tokens;
  Dtype dtype;
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
