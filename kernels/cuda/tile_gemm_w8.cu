// The 8-bit kernels of tile_gemm.h: a file a width, to compile side by side.
#include "kernels/cuda/tile_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchTileGemmBits<8>(const TileGemmParams&, const CUtensorMap&,
                                           const TileGemmFormat&, const cudaLaunchConfig_t&);
}  // namespace babai::cuda
