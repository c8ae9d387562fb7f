// The arithmetic of gemm_ends.h on the device.
#pragma once

#include "kernels/cuda/gemm_ends.h"

namespace babai::cuda {

__device__ __forceinline__ float Gated(const GateFunction& f, float gate, float up) {
  const float u = gate * fmaf(f.cubic, gate * gate, f.linear);
  return gate / (1.0f + __expf(-u)) * up;
}

}  // namespace babai::cuda
