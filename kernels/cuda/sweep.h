// Babai's nearest plane for every row of a matrix at once, from the last column to the first:
//
//   u_p = w_p + s_p / L_pp,  s_p = sum over i > p of L_ip e_i,  e_p = w_p - Q(u_p)
//
//   method    rows are independent. A kernel takes 128 columns of all rows, a thread a row, the
//             factor's block in shared memory; what their errors ask of earlier columns is a
//             product, of 128 columns inside a stretch of 1024 and of a whole stretch before it
//   roof      n k^2 multiply-adds: three times as many in tf32
//   numerics  plain tf32 would err by 2^-11 of a sum that may be several steps: one code in some
//             thousand would change. So errors and factor are each split into a tf32 number and
//             the rest, and three of the four products are added up: what is lost is below 2^-21.
//             Sums fp32, losses fp64; deterministic for a device and shape
//   source    Chen et al., arXiv:2507.18553; the same recurrence as server/quant/solver.h
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

// Rows of SweepArgs::errors: of one stretch, each panel's high, high and low parts.
constexpr int kStretch = 1024;
constexpr int kSweepErrors = 3 * kStretch;

// Matrices are feature-major, [k, n]: neighbouring rows of the layer lie side by side.
struct SweepArgs {       // device pointers
  const float* w;        // [k, n], original columns
  const int32_t* order;  // [k], the column at each position
  const float* split;    // what SplitFactor() makes
  const float* blocks;
  const float* diag;          // [k], L_pp
  const float* inverse;       // [k], 1 / L_pp
  const uint16_t* scales;     // [k / group, n] fp16, of original columns
  const uint8_t* zeros;       // [k / group, n]
  float* sums;                // [k, n], positions; overwritten: s
  float* errors;              // [kSweepErrors, n]; overwritten
  uint8_t* codes;             // [k, n], original columns; overwritten
  double* losses;             // [n]; overwritten: ||(w - q) L||^2
  int* clipped;               // [n]; overwritten: weights that wanted a value outside the grid
  int n, k, group, max_code;  // k a multiple of 4
};

// Enqueues everything on the queue's stream, which must be that of `cublas`.
absl::Status Sweep(const SweepArgs& args, Cublas& cublas, const Queue& queue);

// losses [n] = ||w L||^2 of the weights themselves. `l` as TakeFactor() rounds it to tf32; weights
// that are fp16 or bf16 numbers are tf32 numbers too, others are cut off to 11 bits: the sum is
// then too small by at most 2^-9.
struct NormArgs {        // device pointers
  const float* w;        // [k, n], original columns
  const int32_t* order;  // [k]
  const float* l;        // [k, k]
  float* sorted;         // [k, n], overwritten: w by position
  float* products;       // [kNormColumns, n], overwritten
  double* losses;        // [n], overwritten
  int n, k;
};
constexpr int kNormColumns = 1024;
absl::Status SquaredNorms(const NormArgs& args, Cublas& cublas, const Queue& queue);

}  // namespace babai::cuda
