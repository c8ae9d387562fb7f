// y = after * (H (before * x)), of rows: the change of basis and the column scales that stand
// around a packed matrix (formats/packed_linear.h).
//
//   H         block-diagonal, Sylvester-Hadamard matrices of size `block`, not scaled
//   regime    any number of rows; x and y may be the same
//   roof      x read, y written
//   limits    block a power of two up to kMostHadamardBlock that divides width; width a multiple of
//             kHadamardUnit; x and y 8-byte aligned
//   numerics  fp32 between the read and the one rounding, in a fixed order
//   source    randomized Hadamard transform: QuIP#, arXiv:2402.04396
#pragma once

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kMostHadamardBlock = 4096;
constexpr int kHadamardUnit = 4;  // values of a thread

struct HadamardArgs {           // device pointers
  const void* x;                // [rows, width] of dtype
  void* y;                      // the same
  const float *before, *after;  // [width], or null: ones
  int rows, width;
  int block;  // 1: no transform
  Dtype dtype;
};

cudaError_t Hadamard(const HadamardArgs& args, const Queue& queue);

}  // namespace babai::cuda
