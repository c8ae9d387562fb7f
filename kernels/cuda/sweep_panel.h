// The kernels of sweep.h: 128 columns of the sweep, and the steps of the norms.
#pragma once

#include "kernels/cuda/sweep.h"

namespace babai::cuda {

constexpr int kPanel = 128;  // columns

// Positions [first, first + count) of the sweep; `errors` holds s there before and e after.
cudaError_t SweepPanel(const SweepArgs& args, int first, int count, const Queue& queue);

// sorted[p] = w[order[p]].
cudaError_t SortColumns(const NormArgs& args, const Queue& queue);
// losses += the squares of products [count, n], a row's in order.
cudaError_t AddSquares(const NormArgs& args, int count, const Queue& queue);

}  // namespace babai::cuda
