// Floats of one type as another, rounded to nearest: dense weights at load.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

enum class StoredFloat { kFp16, kBf16, kFp32 };

// out[0 .. count) of dtype = in[0 .. count). Device pointers, which may not overlap.
cudaError_t Convert(const void* in, StoredFloat type, int64_t count, void* out, Dtype dtype,
                    const Queue& queue);

}  // namespace babai::cuda
