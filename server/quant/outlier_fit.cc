#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "kernels/formats/float16.h"
#include "server/quant/root_search.h"
#include "server/quant/row_sample.h"
#include "server/quant/step_fit.h"
#include "server/quant/swept_fit.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The parameters of the sampled rows.
template <typename Grid>
Grid SampledGrid(const Grid& grid, int64_t count) {
  Grid out = grid;
  out.rows = count;
  const auto sample = [&](auto& values) {
    if (values.empty()) return;
    values = SpreadRows(absl::MakeConstSpan(values), grid.rows,
                        static_cast<int64_t>(values.size()) / grid.rows, count);
  };
  sample(out.scales);
  if constexpr (std::is_same_v<Grid, UniformGrid>) {
    sample(out.zeros);
  } else if (grid.kind != TableKind::kShared) {
    sample(out.table);
  }
  return out;
}

constexpr double kDensityTolerance = 0.01;
constexpr int kDensityEvaluations = 16;

// The solution whose density is nearest, for the factor 2^x of a grid's scales.
template <typename Grid>
absl::StatusOr<ScaledSolution<Grid>> SearchScale(SolveOptions options, const Rows& rows,
                                                 const Grid& grid, double density,
                                                 const PackedFactor<float>* packed,
                                                 ThreadPool& pool,
                                                 const std::function<bool()>& stop, double& x) {
  options.kept = rows.kept;
  RootSearch search(x, /*slope=*/-6);  // of log2 density over log2 factor, in a Gaussian's tail
  ScaledSolution<Grid> best;
  double least = HUGE_VAL;
  for (int i = 0; i < kDensityEvaluations && least > kDensityTolerance; ++i) {
    const double at = search.x();
    Grid scaled = ScaledBy(std::exp2(at), grid);
    auto solution = Solve<float>(options, rows.w, scaled, packed, pool, stop);
    if (!solution.ok()) return solution.status();
    const double got = static_cast<double>(solution->sparse.columns.size()) /
                       static_cast<double>(grid.rows * grid.cols);
    search.Add(std::log2(std::max(got, density * 1e-3) / density));
    if (!(std::abs(got / density - 1) < least)) continue;
    least = std::abs(got / density - 1);
    best = {std::move(scaled), *std::move(solution), std::exp2(at), got};
    x = at;
  }
  return best;
}

}  // namespace

template <typename Grid>
absl::StatusOr<ScaledSolution<Grid>> SearchOutlierScale(SolveOptions options, double density,
                                                        absl::Span<const float> w, const Grid& grid,
                                                        const PackedFactor<float>* packed,
                                                        ThreadPool& pool,
                                                        const std::function<bool()>& stop) {
  if (!(density > 0 && density <= 0.25)) return InvalidField("density", "must be in (0, 0.25]");
  options.keep_overflow = true;
  const Rows all = {w, grid.rows, options.kept};
  const RowSample sample(all, grid.cols);
  double x = 0;
  if (sample.rows().count < grid.rows) {
    SolveOptions quick = options;
    quick.descent_passes = 0;
    const auto found = SearchScale(quick, sample.rows(), SampledGrid(grid, sample.rows().count),
                                   density, packed, pool, stop, x);
    if (!found.ok()) return found;
  }
  return SearchScale(options, all, grid, density, packed, pool, stop, x);
}

template absl::StatusOr<ScaledSolution<UniformGrid>> SearchOutlierScale(
    SolveOptions, double, absl::Span<const float>, const UniformGrid&, const PackedFactor<float>*,
    ThreadPool&, const std::function<bool()>&);
template absl::StatusOr<ScaledSolution<TableGrid>> SearchOutlierScale(
    SolveOptions, double, absl::Span<const float>, const TableGrid&, const PackedFactor<float>*,
    ThreadPool&, const std::function<bool()>&);

}  // namespace babai
