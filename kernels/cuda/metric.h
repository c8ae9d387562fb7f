// Between the moments of a layer's inputs and the factor that the sweep walks on: order, damping
// and precision.
//
//   roof      h and the triangles read and written once
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/queue.h"

namespace babai::cuda {

// diag[i] = h[i, i].
struct DiagonalArgs {  // device pointers
  const float* h;      // [k, k]
  float* diag;         // [k]
  int k;
};
cudaError_t Diagonal(const DiagonalArgs& args, const Queue& queue);

// out[r, c], c >= r, = scale h[order[r], order[c]] off the diagonal, and diag[order[r]] on it. An
// input that is dead has zeros off the diagonal.
struct OrderMetricArgs {  // device pointers
  const float* h;         // [k, k], the lower triangle
  const int32_t* order;   // [k]
  const double* diag;     // [k], original order
  const uint8_t* dead;    // [k], original order
  double scale;
  double* out;  // [k, k] row-major; positions with c < r are left alone
  int k;
};
cudaError_t OrderMetric(const OrderMetricArgs& args, const Queue& queue);

// l[r, c] = factor[c, r] for c <= r, 0 above.
struct TakeFactorArgs {  // device pointers
  const double* factor;  // [k, k], what Cholesky::Run leaves
  float* l;              // [k, k] row-major; overwritten
  double* pivots;        // [k] the diagonal, or null
  bool to_tf32;          // rounded to nearest tf32: 11 significant bits
  int k;
};
cudaError_t TakeFactor(const TakeFactorArgs& args, const Queue& queue);

// The factor as sweep.h multiplies by it: panels of kSplitRows rows, each three times over, high
// part, low part and high part again, where high is a value rounded to nearest tf32 and low what
// that leaves; and its blocks on the diagonal as they are. Rows past k are zeros.
constexpr int kSplitRows = 128;
constexpr int SplitPanels(int64_t k) { return static_cast<int>((k + kSplitRows - 1) / kSplitRows); }
constexpr int64_t SplitValues(int64_t k) { return 3 * k * SplitPanels(k) * kSplitRows; }
constexpr int64_t BlockValues(int64_t k) {
  return int64_t{SplitPanels(k)} * kSplitRows * kSplitRows;
}

struct SplitFactorArgs {  // device pointers
  const double* factor;   // [k, k], what Cholesky::Run leaves
  float* split;           // [panels, 3, kSplitRows, k]; columns before the panel are overwritten
  float* blocks;          // [panels, kSplitRows, kSplitRows]; overwritten
  int k;
};
cudaError_t SplitFactor(const SplitFactorArgs& args, const Queue& queue);

}  // namespace babai::cuda
