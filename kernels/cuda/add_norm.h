// x += post(y + bias), h = norm(x): what stands between two linears of the residual stream.
//
//   regime    any number of rows; one block a row, which stays in registers
//   roof      x and y read, x and h written
//   limits    hidden a multiple of 4, up to 32768 (kMaxNormWidth)
//   numerics  fp32, sums in a fixed order; the one rounding is h's. A row depends on itself alone
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kMaxNormWidth = 32768;

struct NormWeights {
  const float* weight = nullptr;  // [hidden]; null: no norm
  const float* bias = nullptr;    // [hidden], LayerNorm only; null: none
};

struct AddNormArgs {   // device pointers
  float* x;            // [.., hidden], the residual stream
  const void* y;       // [.., hidden] of dtype, to be added, or null
  const float* bias;   // [hidden] of y, or null
  NormWeights post;    // on y before it is added
  NormWeights norm;    // must be there
  void* h;             // [rows, hidden] of dtype; overwritten
  const int32_t* row;  // h's row r is of x's (and y's) row row[r], and x stays as it is; null: r
  int rows, hidden;
  bool layer_norm;  // else root mean square
  float eps;
  Dtype dtype;
};

cudaError_t AddNorm(const AddNormArgs& args, const Queue& queue);

}  // namespace babai::cuda
