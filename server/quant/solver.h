// Stage S5: codes for a fixed grid.
//
//   kNearest  rounds each weight alone
//   kBabai    the sweep of layer.h
//   kKBest    the same sweep with the best few partial solutions of each row kept (a list sphere
//             decoder; K-CoreQ, arXiv:2602.05902)
//   descent   after any of them: each weight in turn goes to the grid value that is best while all
//             others stay, q_j <- Round(q_j - (H (q - w))_j / H_jj)
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
#include "kernels/formats/sparse_rows.h"
#include "server/quant/factor.h"
#include "server/quant/grid.h"
#include "server/quant/recipe.h"
#include "server/quant/tile.h"
#include "server/quant/tile_loop.h"

namespace babai {

inline constexpr int kMaxBeam = 16;

// A Factor as the inner loops read it (FactorView), in T. Borrows the Factor's order.
template <typename T>
class PackedFactor {
 public:
  // `for_descent` also makes H = L L', which descent passes need: k^2 values more.
  // ResourceExhausted: no memory.
  static absl::StatusOr<PackedFactor> Make(const Factor& factor, ThreadPool& pool,
                                           bool for_descent = false);
  FactorView<T> view() const;
  MetricView<T> metric() const;  // values is null unless made for descent

 private:
  absl::Status MakeMetric(ThreadPool& pool);

  const Factor* factor_ = nullptr;
  TileBuffer<T> columns_, metric_;
  std::vector<T> diag_, inverse_diag_, metric_diag_, metric_inverse_;
};

struct SolveOptions {
  Solver solver = Solver::kBabai;
  int beam = 1;                // kKBest: partial solutions kept, 1..kMaxBeam
  int descent_passes = 0;      // > 0 needs a factor made for descent
  bool keep_overflow = false;  // what the grid's ends would clip is stored exactly instead
  // [rows * cols], 1 = stored exactly whatever its value; or null.
  const std::vector<uint8_t>* kept = nullptr;
  bool column_sums = false;  // kNearest and kBabai: fill Solution::code_wanted and code_code
};

// Codes, and each row's losses: with a factor ||(w - q) L||^2, without ||w - q||^2.
template <typename Code>
struct Solution {
  std::vector<Code> codes;               // [rows, cols], original column order
  std::vector<double> losses;            // [rows]
  std::vector<double> reference_losses;  // [rows], the same with q = 0
  int64_t clipped = 0;  // weights that wanted a value outside the grid and were not kept
  // Values that are added to what the codes decode to. Each is an fp16 number, and the sweep went
  // on with the sum: what is stored is what was used. Always [rows, cols]; often without entries.
  SparseRows sparse;
  // [cols]: sums over rows of z u and z^2, u being what the sweep wanted and z the code.
  std::vector<double> code_wanted, code_code;
};

// Quantizes w [rows, cols] on `grid`: UniformGrid, UnboundedGrid, TableGrid or IntegerGrid. T is
// the arithmetic of the sweep. `factor` may be null for kNearest without descent. Rows do not
// influence each other: the result is the same for any number of threads. Requires finite w and
// matching sizes. InvalidArgument INVALID_FIELD: options outside the ranges above. Cancelled,
// ResourceExhausted: see ForEachTile.
template <typename T, typename Grid>
absl::StatusOr<Solution<CodeOf<Grid>>> Solve(const SolveOptions& options, absl::Span<const float> w,
                                             const Grid& grid, const PackedFactor<T>* factor,
                                             ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
