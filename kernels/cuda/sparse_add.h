// y += x S', S sparse: the few weights that a packed matrix can not hold.
//
//   regime    any m
//   roof      the entries read once; their x comes from shared memory (up to eight tokens) or, of
//             eight tokens in one load, out of the caches
//   limits    k a multiple of 8, at most 65536; x of a token fits a block's shared memory; x
//             aligned to 16 bytes
//   numerics  fp32, a row's entries in a fixed order for an m, one rounding of y
//   source    compressed sparse rows beside a packed matrix: SpQR, arXiv:2306.03078
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kMostSparseCols = 65536;

struct SparseMatrix {        // device pointers
  const int32_t* row_begin;  // [n + 1], into the entries
  const uint16_t* columns;   // [entries]
  const float* values;       // [entries]
};

struct SparseAddArgs {  // device pointers
  const void* x;        // [m, k] of dtype, row-major
  void* transposed;     // TransposedBytes(m, k), 16-byte aligned: x by columns; or not needed
  void* y;              // [m, n] of dtype, row-major
  SparseMatrix s;
  int m, n, k;
  Dtype dtype;
};

constexpr int64_t TransposedBytes(int64_t m, int64_t k) {
  constexpr int64_t kAtOnce = 8, kElement = 2;
  return m <= kAtOnce ? 0 : (m + kAtOnce - 1) / kAtOnce * kAtOnce * k * kElement;
}

// Enqueues and returns without waiting. cudaErrorInvalidValue: outside the limits.
cudaError_t SparseAdd(const SparseAddArgs& args, const Queue& queue);

}  // namespace babai::cuda
