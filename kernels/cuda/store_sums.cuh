// The end of a product of few tokens: a lane's sums become y.
#pragma once

#include "kernels/cuda/gemm_ends.cuh"
#include "kernels/cuda/ptx.cuh"

namespace babai::cuda {

// y [m, n], or what `ends` makes of it. v: of row `row` (v[0] and v[1]) and eight rows on (v[2] and
// v[3]), of tokens `token` and the next each. Of kGate's pairs, gate is the first row.
template <typename T>
__device__ __forceinline__ void StoreSums(const GemmEnds& ends, void* y, int m, int n, int token,
                                          int row, const float (&v)[4]) {
  // Each kind in a run of its own: code is fetched, once a tile, as slowly as it is run.
  const auto each = [&](const auto& put) {
    const int64_t at = int64_t{token} * n + row;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int down = j / 2 * 8;
      if (token + j % 2 < m && row + down < n) put(at + j % 2 * n + down, v[j]);
    }
  };
  if (ends.output == GemmOutput::kStore) {
    each([y](int64_t at, float sum) { static_cast<T*>(y)[at] = FromFloat<T>(sum); });
  } else if (ends.output == GemmOutput::kAdd) {
    each([y](int64_t at, float sum) { AddToMemory(static_cast<float*>(y) + at, sum); });
  } else {
    const int feature = row / 16 * 8 + row % 8;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (token + j >= m || feature >= n / 2) continue;
      static_cast<T*>(y)[int64_t{token + j} * (n / 2) + feature] =
          FromFloat<T>(Gated(ends.gate, v[j], v[j + 2]));
    }
  }
}

}  // namespace babai::cuda
