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
const TileOps<float, UniformTile<float, uint8_t>>& TileOpsForCpu() {
  return Chosen().fp32_clipped;
}
template <>
const TileOps<float, UniformTile<float, int32_t>>& TileOpsForCpu() {
  return Chosen().fp32_unbounded;
}
template <>
const TileOps<double, UniformTile<double, uint8_t>>& TileOpsForCpu() {
  return Chosen().fp64_clipped;
}
template <>
const TileOps<double, UniformTile<double, int32_t>>& TileOpsForCpu() {
  return Chosen().fp64_unbounded;
}

FitTileFn FitTileForCpu() { return Chosen().fit; }

}  // namespace babai
