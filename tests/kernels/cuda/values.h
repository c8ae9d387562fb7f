// Random values for the kernels of a step, and the 16-bit types they come in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

inline uint16_t Encode(float v, Dtype dtype) {
  if (dtype == Dtype::kFp16) return __half_as_ushort(__float2half(v));
  return __bfloat16_as_ushort(__float2bfloat16(v));
}
inline float Decode(uint16_t v, Dtype dtype) {
  if (dtype == Dtype::kFp16) return __half2float(__ushort_as_half(v));
  return __bfloat162float(__ushort_as_bfloat16(v));
}

// Half the distance of two neighbours, relative to the larger.
inline double HalfUlp(Dtype dtype) { return dtype == Dtype::kFp16 ? 0x1p-11 : 0x1p-8; }

inline std::vector<float> RandomFloats(int64_t size, uint32_t seed, float sigma = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> values(size);
  for (float& v : values) v = normal(rng);
  return values;
}

inline std::vector<uint16_t> Encoded(const std::vector<float>& values, Dtype dtype) {
  std::vector<uint16_t> out;
  for (const float v : values) out.push_back(Encode(v, dtype));
  return out;
}
inline std::vector<float> Decoded(const std::vector<uint16_t>& values, Dtype dtype) {
  std::vector<float> out;
  for (const uint16_t v : values) out.push_back(Decode(v, dtype));
  return out;
}
// As they are once stored.
inline std::vector<float> Rounded(const std::vector<float>& values, Dtype dtype) {
  return Decoded(Encoded(values, dtype), dtype);
}

}  // namespace babai::cuda
