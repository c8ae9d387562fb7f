// k-means of each row's weights: see table_fit.h.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/fit_input.h"
#include "server/quant/grid.h"

namespace babai {

// 2^bits values a row, ascending, kRow: the best clusters of the row's weights, found exactly for
// up to some hundred cells that they are gathered in and then moved to their means. Lloyd's
// algorithm from any simple start loses up to twice as much where a row has outliers.
// InvalidArgument: a value exceeds fp16.
absl::StatusOr<TableGrid> FitClusters(const FitInput& input, int bits, ThreadPool& pool,
                                      const std::function<bool()>& stop);

}  // namespace babai
