#include "server/quant/table_fit.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"
#include "server/quant/binary_fit.h"
#include "server/quant/cluster_fit.h"
#include "server/quant/fit_input.h"
#include "server/quant/tile.h"
#include "server/quant/tile_loop.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kFitLanes = kLanes<float>;

// Largest table value over largest weight, from beyond the whole range (a sweep rounds more than
// the weights) down to where two bits on a long row with outliers still find their best, 3 % apart:
// finer than the error's dependence on it.
std::vector<float> Shrinks(ScaleFit fit) {
  if (fit == ScaleFit::kAbsMax) return {1.0f};
  std::vector<float> shrinks;
  for (double s = 1.4; s > 0.1; s *= 0.97) shrinks.push_back(static_cast<float>(s));
  return shrinks;
}

// NormalFloat of 2^bits values (NF4, arXiv:2305.14314, appendix E; other widths by the same rule):
// quantiles of the normal distribution, one more on the positive side than on the negative one
// besides 0, divided by the largest.
double NormalQuantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

std::vector<float> NormalFloat(int bits) {
  const int half = 1 << (bits - 1);
  // The outermost quantile is the mean of those of the first and last half step.
  const double end = 1 - 0.5 * (1.0 / (4 * half) + 1.0 / (4 * half - 2));
  const double largest = NormalQuantile(end);
  std::vector<float> values;
  for (int i = 0; i < half; ++i) {  // negative: half - 1 of them, then 0
    const double p = end + (0.5 - end) * i / (half - 1);
    if (i < half - 1) values.push_back(static_cast<float>(-NormalQuantile(p) / largest));
  }
  values.push_back(0);
  for (int i = half - 1; i >= 0; --i) {
    const double p = end + (0.5 - end) * i / half;
    values.push_back(static_cast<float>(NormalQuantile(p) / largest));
  }
  for (float& v : values) v = HalfToFloat(FloatToHalf(v));
  return values;
}

// value(e) for the positive half, ascending, and its mirror image.
template <typename Value>
std::vector<float> Mirrored(int bits, const Value& value) {
  std::vector<float> positive, values;
  for (int i = 0; i < 1 << (bits - 1); ++i) positive.push_back(value(i));
  for (auto v = positive.rbegin(); v != positive.rend(); ++v) values.push_back(-*v);
  values.insert(values.end(), positive.begin(), positive.end());
  return values;
}

absl::StatusOr<TableGrid> FitFixedTable(const FitInput& input, const TableFitOptions& options,
                                        ThreadPool& pool, const std::function<bool()>& stop) {
  const int64_t cols = input.cols;
  TableGrid grid = {options.bits, TableKind::kShared, input.rows, cols,
                    std::min(options.group, cols)};
  const std::vector<float> levels = FixedTable(options.kind, options.bits);
  const std::vector<float> shrinks = Shrinks(options.fit);
  std::vector<float> middles;
  for (size_t i = 1; i < levels.size(); ++i) middles.push_back((levels[i - 1] + levels[i]) / 2);
  for (float v : levels) grid.table.push_back(FloatToHalf(v));
  grid.scales.resize(input.rows * grid.groups());
  std::atomic<bool> fits = true;
  const auto work = [&](TileRows part, uint8_t* scratch) {
    float* weights = reinterpret_cast<float*>(scratch);
    float* importance = weights + cols * kFitLanes;
    input.LoadLanes(part, kFitLanes, weights, importance);
    for (int64_t g = 0; g < grid.groups(); ++g) {
      alignas(64) float scales[kFitLanes];
      const int64_t at = g * grid.group * kFitLanes;
      FitOpsForCpu().table_scales({weights + at, importance + at, grid.group, levels.data(),
                                   middles.data(), static_cast<int32_t>(levels.size()),
                                   shrinks.data(), static_cast<int64_t>(shrinks.size())},
                                  scales);
      for (int64_t i = 0; i < part.count; ++i) {
        if (!(scales[i] <= 65504)) fits = false;
        grid.scales[(part.first + i) * grid.groups() + g] = FloatToHalf(scales[i]);
      }
    }
  };
  const int64_t scratch = 2 * cols * kFitLanes * static_cast<int64_t>(sizeof(float));
  if (absl::Status s = ForEachTile(input.rows, kFitLanes, scratch, pool, stop, work); !s.ok())
    return s;
  if (!fits) return WeightsTooLarge();
  return grid;
}

absl::Status CheckOptions(const TableFitOptions& o, size_t weights) {
  if (o.bits < 2 || o.bits > 4) return InvalidField("bits", "must be 2, 3 or 4");
  if (o.kind == GridKind::kFloat4 && o.bits != 4) {
    return InvalidField("bits", "of FP4 are 4");
  }
  if (o.kind == GridKind::kBinaryCoding &&
      (o.intermediate_bits < o.bits || o.intermediate_bits > kMaxIntermediateBits)) {
    return InvalidField("intermediate_bits",
                        absl::StrCat("must be in bits..", kMaxIntermediateBits));
  }
  if (o.kept != nullptr && o.kept->size() != weights) {
    return InvalidField("kept", "must have an entry for each weight");
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<float> FixedTable(GridKind kind, int bits) {
  const int half = 1 << (bits - 1);
  switch (kind) {
    case GridKind::kOdd:
      return Mirrored(bits, [](int i) { return static_cast<float>(2 * i + 1); });
    case GridKind::kPowerOfTwo:
      return Mirrored(bits, [&](int i) { return std::ldexp(1.0f, i + 1 - half); });
    case GridKind::kFloat4: {
      // E2M1 has two zeros; the codes of both are kept, since every code must mean something.
      constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
      return Mirrored(bits, [&](int i) { return kMagnitudes[i]; });
    }
    default:
      return NormalFloat(bits);
  }
}

absl::StatusOr<TableGrid> FitTables(absl::Span<const float> w, int64_t rows, int64_t cols,
                                    const TableFitOptions& options, ThreadPool& pool,
                                    const std::function<bool()>& stop) {
  if (absl::Status s = CheckOptions(options, w.size()); !s.ok()) return s;
  if (!std::all_of(w.begin(), w.end(), [](float x) { return std::isfinite(x); })) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kNonFiniteWeights, "",
                  "a weight is not a number or infinite");
  }
  const bool weighted = options.kind == GridKind::kKMeans ||
                        options.kind == GridKind::kBinaryCoding ||
                        options.fit == ScaleFit::kLossWeighted;
  const FitInput input = {w, rows, cols,
                          MeanOne(weighted ? options.importance : absl::Span<const double>(), cols),
                          options.kept};
  switch (options.kind) {
    case GridKind::kKMeans:
      return FitClusters(input, options.bits, pool, stop);
    case GridKind::kBinaryCoding:
      return FitBinaryCoding(input, options.bits, options.intermediate_bits, pool, stop);
    case GridKind::kOdd:
    case GridKind::kPowerOfTwo:
    case GridKind::kNormalFloat:
    case GridKind::kFloat4:
      return FitFixedTable(input, options, pool, stop);
    default:
      return InvalidField("grid", "is not a table of values");
  }
}

}  // namespace babai
