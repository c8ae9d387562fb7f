// The scale (and zero point) of every group of weights of a uniform grid: the searches of
// server/quant/scale_fit.h, operation by operation, so that they choose the same.
//
//   regime    a thread a group of a row; matrices lie feature-major, [k, n], so that a warp's rows
//             are neighbours
//   roof      153 candidates a group, about 8 operations a weight and candidate
//   numerics  fp32, sums along the group in order
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/queue.h"

namespace babai::cuda {

enum class FitRange { kWhole, kSearched };

// Bits of FitScalesArgs::refused.
constexpr int kFitNotFinite = 1;  // a weight is a NaN or infinite
constexpr int kFitTooLarge = 2;   // a scale exceeds fp16

struct FitScalesArgs {      // device pointers
  const float* w;           // [k, n]
  const float* importance;  // [k], of a squared error in each column; with kSearched only
  uint16_t* scales;         // [groups, n] fp16; overwritten
  uint8_t* zeros;           // [groups, n]; overwritten
  int* refused;             // or-ed to
  int n, k, group;          // group divides k
  int bits;
  bool symmetric;
  FitRange range;
};

cudaError_t FitScales(const FitScalesArgs& args, const Queue& queue);

}  // namespace babai::cuda
