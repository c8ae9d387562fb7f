// cos and sin of every position of a step, for all ropes of a model at once.
//
//   regime    any number of tokens; once a step
//   numerics  angles in fp64: an fp32 angle is off by 0.004 rad at position 100 000
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/queue.h"

namespace babai::cuda {

struct RopeAnglesArgs {      // device pointers
  const int32_t* positions;  // [count]
  const double* inv_freq;    // [pairs], those of all ropes one after another
  const float* scales;       // [pairs], multiply cos and sin
  float2* angles;            // [count, pairs] (cos, sin); overwritten
  int count, pairs;
};

cudaError_t RopeAngles(const RopeAnglesArgs& args, const Queue& queue);

}  // namespace babai::cuda
