// The descriptor that tensor copies of x take.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

constexpr int kXBoxCols = 64;  // 128 bytes, what one swizzled row of wgmma's operand B holds

// Of x [m, k], row-major, in boxes of kXBoxCols columns by `tokens` rows, swizzled by 128 bytes.
cudaError_t MakeXMap(const void* x, int m, int k, Dtype dtype, int tokens, CUtensorMap* map);

}  // namespace babai::cuda
