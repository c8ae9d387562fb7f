// Stage S5: codes for a fixed grid. Nearest rounds each weight alone; Babai is the sweep of
// layer.h.
//
// The sweep is kept in the form  u_p = w_p + 1/L_pp sum_{i>p} L_ip (w_i - q_i): it multiplies
// errors, which are small, instead of Y = W L itself, and so saves that product and its rounding. A
// tile of rows stays in cache from the last column to the first; the sums over later columns are
// dot products held in registers, eight columns at a time, and the packed factor is read front to
// back.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/grid.h"
#include "server/quant/layer.h"
#include "server/quant/tile.h"
#include "server/quant/tile_loop.h"

namespace babai {

// A Factor as the inner loops read it (FactorView), in T. Borrows the Factor's order.
template <typename T>
class PackedFactor {
 public:
  // ResourceExhausted: no memory.
  static absl::StatusOr<PackedFactor> Make(const Factor& factor, ThreadPool& pool);
  FactorView<T> view() const;

 private:
  const Factor* factor_ = nullptr;
  TileBuffer<T> columns_;
  std::vector<T> diag_, inverse_diag_;
};

// Codes, and each row's losses: with a factor ||(w - q) L||^2, without ||w - q||^2.
template <typename Code>
struct Solution {
  std::vector<Code> codes;               // [rows, cols], original column order
  std::vector<double> losses;            // [rows]
  std::vector<double> reference_losses;  // [rows], the same with q = 0
  int64_t clipped = 0;                   // weights that wanted a code outside the grid
};

// Quantizes w [rows, cols] on `grid`. T is the arithmetic of the sweep. Code = uint8_t uses the
// grid's codes; Code = int32_t all integers. `factor` may be null for kNearest. Rows do not
// influence each other: the result is the same for any number of threads. Requires finite w and
// matching sizes.
template <typename T, typename Code>
absl::StatusOr<Solution<Code>> Solve(Solver solver, absl::Span<const float> w,
                                     const UniformGrid& grid, const PackedFactor<T>* factor,
                                     ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
