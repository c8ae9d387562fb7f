// Stage S4, fitting of value tables (format F2) from the original weights, before any solver runs.
//
//   kOdd, kPowerOfTwo, kNormalFloat, kFloat4   a fixed table times a searched scale a group
//   kKMeans        2^bits values a row: the means of clusters of its weights, each weight counting
//                  by its column's importance (SqueezeLLM, arXiv:2306.07629)
//   kBinaryCoding  a bias and `bits` signed scales a row, chosen in two steps as GPTQT does
//                  (arXiv:2407.02891): a linear grid of intermediate_bits whose scale is searched,
//                  then the best 2^bits of its points that are all sums c0 + sum_i {0, 1} x_i of
//                  positive integers. Which error is minimised and how is ours.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/grid.h"
#include "server/quant/recipe.h"

namespace babai {

struct TableFitOptions {
  GridKind kind = GridKind::kOdd;  // one of the six above
  int bits = 4;                    // 2, 3, 4; kFloat4 only 4
  int64_t group = 0;               // of the kinds with a fixed table; divides cols or is >= cols
  ScaleFit fit = ScaleFit::kLossWeighted;  // of the kinds with a fixed table
  int intermediate_bits = 5;               // kBinaryCoding: bits..6
  // [cols], the cost of a unit of squared error in each column; empty weighs all alike. The kinds
  // with a fixed table use it under kLossWeighted only.
  absl::Span<const double> importance;
  // [rows * cols], 1 = stored beside the grid and therefore left out of the fit; or null.
  const std::vector<uint8_t>* kept = nullptr;
};

// The 2^bits values, ascending, of a kind with a fixed table; largest magnitude 1, but for kOdd
// (+-1, +-3 ...) and kFloat4 (up to +-6), which are integers or halves. All exact in fp16 but those
// of kNormalFloat, which are rounded to it.
std::vector<float> FixedTable(GridKind kind, int bits);

// Fits w [rows, cols]. InvalidArgument: as FitScales, or options outside the ranges above.
absl::StatusOr<TableGrid> FitTables(absl::Span<const float> w, int64_t rows, int64_t cols,
                                    const TableFitOptions& options, ThreadPool& pool,
                                    const std::function<bool()>& stop);

}  // namespace babai
