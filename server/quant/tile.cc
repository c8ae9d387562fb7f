#include "server/quant/tile.h"

#include "kernels/cpu/isa.h"
#include "server/quant/tile_isa.h"

namespace babai {
namespace {

const TileKernels& Chosen() {
#ifdef BABAI_TILE_X86
  switch (cpu::ActiveIsa()) {
    case cpu::Isa::kAvx512Vnni:
      return kTileKernelsAvx512;
    case cpu::Isa::kAvx2:
      return kTileKernelsAvx2;
    case cpu::Isa::kScalar:
      break;
  }
#endif
  return kTileKernelsGeneric;
}

}  // namespace

template <>
const TileOps<float, UniformTile<float>>& TileOpsForCpu() {
  return Chosen().fp32.uniform;
}
template <>
const TileOps<float, TableTile<float>>& TileOpsForCpu() {
  return Chosen().fp32.table;
}
template <>
const TileOps<float, IntegerTile<float>>& TileOpsForCpu() {
  return Chosen().fp32.integer;
}
template <>
const TileOps<double, UniformTile<double>>& TileOpsForCpu() {
  return Chosen().fp64.uniform;
}
template <>
const TileOps<double, TableTile<double>>& TileOpsForCpu() {
  return Chosen().fp64.table;
}
template <>
const TileOps<double, IntegerTile<double>>& TileOpsForCpu() {
  return Chosen().fp64.integer;
}
template <>
const TileSums<float>& TileSumsForCpu() {
  return Chosen().fp32.sums;
}
template <>
const TileSums<double>& TileSumsForCpu() {
  return Chosen().fp64.sums;
}

const FitOps& FitOpsForCpu() { return Chosen().fit; }

}  // namespace babai
