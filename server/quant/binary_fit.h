// Binary coding of each row: see table_fit.h.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/fit_input.h"
#include "server/quant/grid.h"

namespace babai {

inline constexpr int kMaxIntermediateBits = 6;

// A bias and `bits` scales a row, kBinary. Tries linear grids over the row's whole range and
// fractions of it; on each, every choice of c0 >= 0 and x_1 >= .. >= x_bits >= 1 whose sums lie on
// the grid (at 6 intermediate bits every other point first, and all points of the best grid); takes
// what gives the least squared error of rounding each weight alone. Requires bits in 2..4 and
// intermediate_bits in bits..kMaxIntermediateBits. InvalidArgument: a value exceeds fp16.
absl::StatusOr<TableGrid> FitBinaryCoding(const FitInput& input, int bits, int intermediate_bits,
                                          ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
