#include "server/quant/certificate.h"

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

double Sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// Sum of L_pp^2 over the columns of each group, by original column.
std::vector<double> GroupPivots(const UniformGrid& grid, const Factor* factor) {
  std::vector<double> sums(grid.groups());
  for (int64_t p = 0; p < grid.cols; ++p) {
    const double pivot = factor != nullptr ? factor->l[p * grid.cols + p] : 1.0;
    const int64_t column = factor != nullptr ? factor->order[p] : p;
    sums[column / grid.group] += pivot * pivot;
  }
  return sums;
}

}  // namespace

double BabaiBound(const UniformGrid& grid, const Factor* factor) {
  const std::vector<double> pivots = GroupPivots(grid, factor);
  double bound = 0;
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t g = 0; g < grid.groups(); ++g) {
      const double scale = HalfToFloat(grid.scales[row * grid.groups() + g]);
      bound += scale * scale * pivots[g];
    }
  }
  return bound / 4;
}

double RateGapBits(const Factor& factor) {
  double sum = 0, log_sum = 0;
  for (int64_t p = 0; p < factor.k; ++p) {
    const double l = factor.l[p * factor.k + p];
    sum += l * l;
    log_sum += 2 * std::log2(l);
  }
  const double k = static_cast<double>(factor.k);
  return std::max(0.0, 0.5 * (std::log2(sum / k) - log_sum / k));
}

double EntropyBits(absl::Span<const uint8_t> codes) {
  std::array<int64_t, 256> counts = {};
  for (uint8_t code : codes) ++counts[code];
  double entropy = 0;
  for (int64_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / static_cast<double>(codes.size());
    entropy -= share * std::log2(share);
  }
  return entropy;
}

Certificate MakeCertificate(const Solution<uint8_t>& solution, const UniformGrid& grid,
                            const Factor* factor, const PackedInt& packed) {
  const double weights = static_cast<double>(grid.rows) * static_cast<double>(grid.cols);
  const double stored_bytes =
      static_cast<double>(packed.codes.size() + 2 * packed.scales.size() + packed.zeros.size());
  Certificate c;
  c.proxy_loss = Sum(solution.losses);
  c.reference_loss = Sum(solution.reference_losses);
  if (c.reference_loss > 0) c.relative_error = std::sqrt(c.proxy_loss / c.reference_loss);
  c.babai_bound = BabaiBound(grid, factor);
  c.clip_rate = static_cast<double>(solution.clipped) / weights;
  c.entropy_bits = EntropyBits(solution.codes);
  c.bits_per_weight = 8 * stored_bytes / weights;
  if (factor == nullptr) return c;
  c.rate_gap_bits = RateGapBits(*factor);
  c.damping = factor->damping;
  c.damping_doublings = factor->damping_doublings;
  c.dead_columns = factor->dead_columns;
  return c;
}

}  // namespace babai
