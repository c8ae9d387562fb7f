// Dense linear algebra on raw row-major arrays: the only door from this folder to LibTorch.
//
// The caller owns all memory. LibTorch's intra-op threads do the work, so these functions must not
// be called from inside ThreadPool::ParallelFor. Internal: the library threw; its message is passed
// on.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace babai::linalg {

// c [m, n] = a [m, k] b [k, n] in fp32.
absl::Status Multiply(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k);

// c [m, n] = a [m, k] b' for b [n, k] in fp32.
absl::Status MultiplyTransposed(const float* a, const float* b, float* c, int64_t m, int64_t n,
                                int64_t k);

// b [rows, k] becomes b (L L')^-1 for l [k, k], lower triangular, fp64.
absl::Status SolveRight(const double* l, int64_t k, double* b, int64_t rows);

// s [k, k] -= p' p for p [rows, k], fp64.
absl::Status SubtractGram(const double* p, int64_t rows, int64_t k, double* s);

// a [k, k], of which the lower triangle is read, becomes its lower Cholesky factor with zeros
// above. Returns 0, or the 1-based index of the first pivot that is not positive (a is then
// unspecified).
absl::StatusOr<int64_t> Cholesky(double* a, int64_t k);

}  // namespace babai::linalg
