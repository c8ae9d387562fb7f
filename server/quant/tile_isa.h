// What each instruction set provides: the list of instantiations.
#pragma once

#include "server/quant/tile.h"

namespace babai {

struct TileKernels {
  // The solver of every quantize job.
  TileOps<float, UniformTile<float, uint8_t>> fp32_clipped;
  // Unbounded integers: the grid of the Babai bound.
  TileOps<float, UniformTile<float, int32_t>> fp32_unbounded;
  // The same in double, in which the identities hold to the last digits.
  TileOps<double, UniformTile<double, uint8_t>> fp64_clipped;
  TileOps<double, UniformTile<double, int32_t>> fp64_unbounded;
  FitTileFn fit;
};

extern const TileKernels kTileKernelsGeneric;
extern const TileKernels kTileKernelsAvx2;
extern const TileKernels kTileKernelsAvx512;

}  // namespace babai
