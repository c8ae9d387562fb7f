// The 8-bit kernels of slice_gemm.h: a file a width, to compile side by side.
#include "kernels/cuda/slice_gemm.cuh"

namespace babai::cuda {
template cudaError_t LaunchSliceGemmBits<8>(const SliceGemmParams&, const PackedShape&, Dtype,
                                            const LaunchConfig&);
}  // namespace babai::cuda
