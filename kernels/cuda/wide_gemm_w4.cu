// The 4-bit kernels of wide_gemm.h: a file a width, to compile side by side.
#include "kernels/cuda/wide_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchWideGemmBits<4>(const WideGemmParams&, const CUtensorMap&,
                                           const WideGemmFormat&, const cudaLaunchConfig_t&);
}  // namespace babai::cuda
