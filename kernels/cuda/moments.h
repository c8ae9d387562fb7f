// h += x' x, lower triangle: second moments of a layer's inputs.
//
//   roof      k^2 tokens multiply-adds on the tensor cores: strips of 2048 rows of h, each up to
//             its diagonal block, are 75 % of the whole square at k = 4096 and 57 % at 14336
//   numerics  products of two fp16 (or bf16) numbers are exact in fp32, so only sums round. The
//             tensor cores' sums are cut off rather than rounded: a call loses at most
//             tokens / 16 * 2^-23 of a diagonal entry, 1.2e-4 of it at kMostMomentTokens and half
//             as much on average; calls are added up with rounding, which the number of calls times
//             2^-24 bounds. Both are far below any damping, and fp64 masters would not change the
//             former
//   limits    k a multiple of 8
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

constexpr int kMostMomentTokens = 16384;  // of a call

struct MomentsArgs {  // device pointers
  const void* x;      // [tokens, k] of dtype, row-major
  float* h;           // [k, k] row-major; above the diagonal it may become anything
  int tokens, k;
  Dtype dtype;
};

// Enqueues on the stream of `cublas`.
absl::Status AddMoments(const MomentsArgs& args, Cublas& cublas);

}  // namespace babai::cuda
