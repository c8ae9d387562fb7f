#include "kernels/cuda/tile_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchTileGemmBits<4>(const TileGemmParams&, const CUtensorMap&, int, Dtype,
                                           const LaunchConfig&);
}  // namespace babai::cuda
