#include <cuda_fp16.h>

#include "random_weights.h"

namespace babai {
namespace {

// Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
__device__ __forceinline__ uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Box and Muller 1958.
__global__ void RandomNormalsKernel(float* out, int64_t count, float sigma, uint64_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint64_t bits = SplitMix64(seed ^ SplitMix64(i));
    const float u = (static_cast<uint32_t>(bits >> 40) + 1) * 0x1p-24f;
    const float v = static_cast<uint32_t>(bits & 0xffffff) * 0x1p-24f;
    const float normal = sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    out[i] = __half2float(__float2half_rn(sigma * normal));
  }
}

}  // namespace

cudaError_t RandomNormals(float* out, int64_t count, float sigma, uint64_t seed,
                          cudaStream_t stream) {
  RandomNormalsKernel<<<2048, 256, 0, stream>>>(out, count, sigma, seed);
  return cudaGetLastError();
}

}  // namespace babai
