// k-means of each row's weights: see table_fit.h.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/fit_input.h"
#include "server/quant/grid.h"

namespace babai {

// 2^bits values a row, ascending, kRow: Lloyd's algorithm to its end from two starts, equal shares
// of the weights and equal parts of their range; the better of both. InvalidArgument: a value
// exceeds fp16.
absl::StatusOr<TableGrid> FitClusters(const FitInput& input, int bits, ThreadPool& pool,
                                      const std::function<bool()>& stop);

}  // namespace babai
