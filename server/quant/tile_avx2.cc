// tile_kernels.h for AVX2 and FMA.
#define BABAI_VECTOR_BYTES 32
#include "server/quant/tile_isa.h"
#include "server/quant/tile_kernels.h"

namespace babai {

const TileKernels kTileKernelsAvx2 = {kTileSolvers<float>, kTileSolvers<double>, kFitOps};

}  // namespace babai
