// Random numbers made on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace babai {

// out[i] = sigma * normal, rounded to fp16, a function of seed and i alone.
cudaError_t RandomNormals(float* out, int64_t count, float sigma, uint64_t seed,
                          cudaStream_t stream);

}  // namespace babai
