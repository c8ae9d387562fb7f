// tile_kernels.h for whatever the compiler assumes of the architecture.
#define BABAI_VECTOR_BYTES 16
#include "server/quant/tile_isa.h"
#include "server/quant/tile_kernels.h"

namespace babai {

const TileKernels kTileKernelsGeneric = {kTileSolvers<float>, kTileSolvers<double>, kFitOps};

}  // namespace babai
