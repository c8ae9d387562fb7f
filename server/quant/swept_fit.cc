#include "server/quant/swept_fit.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

// Around the fitted scale, most often too small by some per cent; steps finer than these gain
// nothing.
constexpr double kFactors[] = {1.0, 0.86, 0.93, 1.07, 1.15, 1.24, 1.35};

void ScaleBy(double factor, std::vector<uint16_t>& halves) {
  for (uint16_t& half : halves) {
    const double value = factor * HalfToFloat(half);
    half = FloatToHalf(static_cast<float>(std::clamp(value, -65504.0, 65504.0)));
  }
}

void CopyRow(const std::vector<uint16_t>& from, int64_t row, int64_t rows,
             std::vector<uint16_t>& to) {
  const auto width = static_cast<int64_t>(from.size()) / rows;
  std::copy_n(from.begin() + row * width, width, to.begin() + row * width);
}

std::vector<uint16_t>& Scales(UniformGrid& grid) { return grid.scales; }
std::vector<uint16_t>& Scales(TableGrid& grid) {
  return grid.kind == TableKind::kShared ? grid.scales : grid.table;
}

}  // namespace

UniformGrid ScaledBy(double factor, UniformGrid grid) {
  ScaleBy(factor, grid.scales);
  for (uint16_t& scale : grid.scales) scale = std::max<uint16_t>(scale, 1);  // stays positive
  return grid;
}

TableGrid ScaledBy(double factor, TableGrid grid) {
  ScaleBy(factor, Scales(grid));
  if (grid.kind != TableKind::kShared) return grid;
  for (uint16_t& scale : grid.scales) scale = std::max<uint16_t>(scale, 1);
  return grid;
}

template <typename Grid>
absl::StatusOr<Grid> SweepScales(const SolveOptions& options, absl::Span<const float> w,
                                 const Grid& grid, const PackedFactor<float>* packed,
                                 ThreadPool& pool, const std::function<bool()>& stop) {
  Grid best = grid;
  std::vector<double> least(grid.rows, HUGE_VAL);
  for (const double factor : kFactors) {
    Grid scaled = ScaledBy(factor, grid);
    const auto solved = Solve<float>(options, w, scaled, packed, pool, stop);
    if (!solved.ok()) return solved.status();
    for (int64_t row = 0; row < grid.rows; ++row) {
      if (!(solved->losses[row] < least[row])) continue;
      least[row] = solved->losses[row];
      CopyRow(Scales(scaled), row, grid.rows, Scales(best));
    }
  }
  return best;
}

template absl::StatusOr<UniformGrid> SweepScales(const SolveOptions&, absl::Span<const float>,
                                                 const UniformGrid&, const PackedFactor<float>*,
                                                 ThreadPool&, const std::function<bool()>&);
template absl::StatusOr<TableGrid> SweepScales(const SolveOptions&, absl::Span<const float>,
                                               const TableGrid&, const PackedFactor<float>*,
                                               ThreadPool&, const std::function<bool()>&);

}  // namespace babai
