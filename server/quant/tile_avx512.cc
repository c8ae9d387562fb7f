// tile_kernels.h for AVX-512 (F, BW, DQ, VL).
#define BABAI_VECTOR_BYTES 64
#include "server/quant/tile_isa.h"
#include "server/quant/tile_kernels.h"

namespace babai {

const TileKernels kTileKernelsAvx512 = {kTileSolvers<float>, kTileSolvers<double>, kFitOps};

}  // namespace babai
