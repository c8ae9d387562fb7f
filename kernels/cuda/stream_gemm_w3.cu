// The 3-bit kernels of stream_gemm.h: a file a width, to compile side by side.
#include "kernels/cuda/stream_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchStreamGemmBits<3>(const StreamGemmParams&, const PackedShape&, Dtype,
                                             const LaunchConfig&);
}  // namespace babai::cuda
