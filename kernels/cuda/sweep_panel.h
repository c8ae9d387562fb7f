// The kernels of sweep.h: 128 columns of the sweep, and the steps of the norms.
#pragma once

#include "kernels/cuda/sweep.h"

namespace babai::cuda {

constexpr int kPanel = 128;  // columns

// Panel number `panel` of the sweep, whose errors are number `place` of its stretch's.
cudaError_t SweepPanel(const SweepArgs& args, int panel, int place, const Queue& queue);

// sorted[p] = w[order[p]].
cudaError_t SortColumns(const NormArgs& args, const Queue& queue);
// losses += the squares of products [count, n], a row's in order.
cudaError_t AddSquares(const NormArgs& args, int count, const Queue& queue);

}  // namespace babai::cuda
