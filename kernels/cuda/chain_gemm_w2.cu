// The 2-bit kernels of chain_gemm.h: a file a width, to compile side by side.
#include "kernels/cuda/chain_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchChainGemmBits<2>(const ChainGemmParams&, const PackedShape&, Dtype,
                                            const LaunchConfig&);
}  // namespace babai::cuda
