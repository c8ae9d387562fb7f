// tile_kernels.h for AVX2 and FMA.
#define BABAI_VECTOR_BYTES 32
#include "server/quant/tile_isa.h"
#include "server/quant/tile_kernels.h"

namespace babai {

const TileKernels kTileKernelsAvx2 = {kTileOps<float, UniformTile<float, uint8_t>>,
                                      kTileOps<float, UniformTile<float, int32_t>>,
                                      kTileOps<double, UniformTile<double, uint8_t>>,
                                      kTileOps<double, UniformTile<double, int32_t>>, &Fit};

}  // namespace babai
