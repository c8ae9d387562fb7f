#include "server/quant/certificate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <type_traits>
#include <vector>

#include "kernels/formats/entropy_coded.h"
#include "kernels/formats/float16.h"
#include "server/quant/grid_tile.h"

namespace babai {
namespace {

double Sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// For each code of a row, unscaled, half the distance to the further of its neighbours, squared:
// the first and the last code have one on both sides, since what is further off overflows.
std::vector<double> SquaredReach(const TableGrid& grid, int64_t row) {
  const int count = 1 << grid.bits;
  std::vector<float> levels(count);
  std::vector<uint8_t> codes(count);
  AscendingLevels(grid, row, levels.data(), codes.data());
  std::vector<double> reach(count);
  for (int i = 0; i < count; ++i) {
    const double below = i > 0 ? levels[i] - levels[i - 1] : 0;
    const double above = i + 1 < count ? levels[i + 1] - levels[i] : 0;
    const double half_gap = std::max(below, above) / 2;
    reach[codes[i]] = half_gap * half_gap;
  }
  return reach;
}

}  // namespace

double BabaiBound(const UniformGrid& grid, const Factor* factor) {
  return BabaiBound(grid, SquaredPivots(factor, grid.cols));
}

double BabaiBound(const UniformGrid& grid, absl::Span<const double> pivots) {
  std::vector<double> sums(grid.groups());
  for (int64_t c = 0; c < grid.cols; ++c) sums[c / grid.group] += pivots[c];
  double bound = 0;
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t g = 0; g < grid.groups(); ++g) {
      const double scale = HalfToFloat(grid.scales[row * grid.groups() + g]);
      bound += scale * scale * sums[g];
    }
  }
  return bound / 4;
}

double BabaiBound(const TableGrid& grid, absl::Span<const uint8_t> codes, const Factor* factor) {
  const std::vector<double> pivots = SquaredPivots(factor, grid.cols);
  const bool shared = grid.kind == TableKind::kShared;
  std::vector<double> reach;
  double bound = 0;
  for (int64_t row = 0; row < grid.rows; ++row) {
    if (!shared || row == 0) reach = SquaredReach(grid, row);
    for (int64_t c = 0; c < grid.cols; ++c) {
      const double scale =
          shared ? HalfToFloat(grid.scales[row * grid.groups() + c / grid.group]) : 1.0f;
      bound += scale * scale * pivots[c] * reach[codes[row * grid.cols + c]];
    }
  }
  return bound;
}

double BabaiBound(const IntegerGrid& grid, const Factor* factor) {
  const std::vector<double> pivots = SquaredPivots(factor, grid.cols);
  double bound = 0;
  for (int64_t c = 0; c < grid.cols; ++c)
    bound += double{grid.steps[c]} * grid.steps[c] * pivots[c];
  return bound / 4 * static_cast<double>(grid.rows);
}

double RateGapBits(const Factor& factor) { return RateGapBits(SquaredPivots(&factor, factor.k)); }

double RateGapBits(absl::Span<const double> pivots) {
  double sum = 0, log_sum = 0;
  for (const double pivot : pivots) {
    sum += pivot;
    log_sum += std::log2(pivot);
  }
  const double k = static_cast<double>(pivots.size());
  return std::max(0.0, 0.5 * (std::log2(sum / k) - log_sum / k));
}

double EntropyOfCounts(absl::Span<const int64_t> counts) {
  const double codes =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double entropy = 0;
  for (int64_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / codes;
    entropy -= share * std::log2(share);
  }
  return entropy;
}

double EntropyBits(absl::Span<const uint8_t> codes) {
  std::array<int64_t, 256> counts = {};
  for (uint8_t code : codes) ++counts[code];
  return EntropyOfCounts(counts);
}

double EntropyBits(absl::Span<const int32_t> codes) { return EmpiricalEntropy(codes); }

template <typename Grid>
Certificate MakeCertificate(const Solution<CodeOf<Grid>>& solution, const Grid& grid,
                            const Factor* factor) {
  const double weights = static_cast<double>(grid.rows) * static_cast<double>(grid.cols);
  Certificate c;
  c.proxy_loss = Sum(solution.losses);
  c.reference_loss = Sum(solution.reference_losses);
  if (c.reference_loss > 0) c.relative_error = std::sqrt(c.proxy_loss / c.reference_loss);
  if constexpr (std::is_same_v<Grid, TableGrid>) {
    c.babai_bound = BabaiBound(grid, solution.codes, factor);
  } else {
    c.babai_bound = BabaiBound(grid, factor);
  }
  c.clip_rate = static_cast<double>(solution.clipped) / weights;
  c.entropy_bits = EntropyBits(absl::MakeConstSpan(solution.codes));
  c.outliers = static_cast<double>(solution.sparse.columns.size()) / weights;
  if (factor == nullptr) return c;
  c.rate_gap_bits = RateGapBits(*factor);
  c.damping = factor->damping;
  c.damping_doublings = factor->damping_doublings;
  c.dead_columns = factor->dead_columns;
  return c;
}

template Certificate MakeCertificate(const Solution<uint8_t>&, const UniformGrid&, const Factor*);
template Certificate MakeCertificate(const Solution<uint8_t>&, const TableGrid&, const Factor*);
template Certificate MakeCertificate(const Solution<int32_t>&, const IntegerGrid&, const Factor*);

}  // namespace babai
