// The bodies of tile.h, compiled once for each instruction set by tile_*.cc, which define
// BABAI_VECTOR_BYTES. Everything, here and in the headers included, is in an unnamed namespace and
// nothing but <cstdint> is used: code built with AVX-512 must never be the copy that the linker
// keeps for everybody.
#pragma once

#include "server/quant/tile.h"
#include "server/quant/tile_best.h"
#include "server/quant/tile_fits.h"
#include "server/quant/tile_round.h"
#include "server/quant/tile_sweep.h"

namespace babai {
namespace {

template <typename T, typename Grid>
constexpr TileOps<T, Grid> kTileOps = {&Babai<T, Grid>, &Nearest<T, Grid>, &Best<T, Grid>,
                                       &Descend<T, Grid>};

template <typename T>
constexpr TileSolvers<T> kTileSolvers = {kTileOps<T, UniformTile<T>>,
                                         kTileOps<T, TableTile<T>>,
                                         kTileOps<T, IntegerTile<T>>,
                                         {&Norms<T>, &SumBlock<T>}};

}  // namespace
}  // namespace babai
