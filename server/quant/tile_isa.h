// What each instruction set provides: the list of instantiations.
#pragma once

#include "server/quant/tile.h"

namespace babai {

template <typename T>
struct TileSolvers {
  TileOps<T, UniformTile<T>> uniform;
  TileOps<T, TableTile<T>> table;
  TileOps<T, IntegerTile<T>> integer;
  TileSums<T> sums;
};

struct TileKernels {
  TileSolvers<float> fp32;   // every quantize job
  TileSolvers<double> fp64;  // in which the identities hold to the last digits
  FitOps fit;
};

extern const TileKernels kTileKernelsGeneric;
extern const TileKernels kTileKernelsAvx2;
extern const TileKernels kTileKernelsAvx512;

}  // namespace babai
