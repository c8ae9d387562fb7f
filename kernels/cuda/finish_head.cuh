// A head of one token between its product and attention: bias, norm, rotary embedding; a warp has
// one.
#pragma once

#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {

// Features lane, lane + 32, ... of heads of up to kDim features are this lane's.
template <int kDim>
struct HeadAngles {
  float2 v[kDim / kWarp];

  __device__ __forceinline__ void Load(const float2* angles, int pairs) {
#pragma unroll
    for (int i = 0; i < kDim / kWarp; ++i) {
      const int d = i * kWarp + threadIdx.x % kWarp;
      v[i] = d < 2 * pairs ? angles[d < pairs ? d : d - pairs] : make_float2(1, 0);
    }
  }
};

template <int kDim>
struct Head {
  float v[kDim / kWarp];

  template <typename Fn>
  __device__ __forceinline__ void ForEach(int dim, const Fn& fn) {
#pragma unroll
    for (int i = 0; i < kDim / kWarp; ++i) {
      const int d = i * kWarp + threadIdx.x % kWarp;
      if (d < dim) fn(v[i], d, i);
    }
  }
  template <typename T>
  __device__ __forceinline__ void Load(const T* from, int dim) {
    ForEach(dim, [&](float& value, int d, int) { value = ToFloat(from[d]); });
  }
  __device__ __forceinline__ void Add(const float* bias, int dim) {
    ForEach(dim, [&](float& value, int d, int) { value += bias[d]; });
  }
  __device__ __forceinline__ void Normalize(const float* weight, int dim, float eps) {
    float squares = 0;
    ForEach(dim, [&](float& value, int, int) { squares += value * value; });
    const float inverse = rsqrtf(WarpSum(squares) / static_cast<float>(dim) + eps);
    ForEach(dim, [&](float& value, int d, int) { value *= inverse * weight[d]; });
  }
  // Turns features (d, d + pairs). Partners lie in other lanes, wherever `pairs` puts them.
  __device__ __forceinline__ void Turn(const HeadAngles<kDim>& angles, int pairs, int dim) {
    constexpr int kCount = kDim / kWarp;
    float partner[kCount] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * kWarp >= 2 * pairs) break;
      const int d = i * kWarp + threadIdx.x % kWarp, other = d < pairs ? d + pairs : d - pairs;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (j * kWarp >= 2 * pairs) break;
        const float there = __shfl_sync(kAllLanes, v[j], other % kWarp);
        if (other / kWarp == j) partner[i] = there;
      }
    }
    ForEach(dim, [&](float& value, int d, int i) {
      if (d >= 2 * pairs) return;
      const float2 angle = angles.v[i];
      value = d < pairs ? value * angle.x - partner[i] * angle.y
                        : value * angle.x + partner[i] * angle.y;
    });
  }
  template <typename T>
  __device__ __forceinline__ void Store(T* to, int dim) {
    ForEach(dim, [&](float& value, int d, int) { to[d] = FromFloat<T>(value); });
  }
};

}  // namespace babai::cuda
