// Fitting the model of format F6: spreads of rows and columns, classes, tables.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/formats/entropy_model.h"

namespace babai {
namespace {

using entropy::Counts;

// Spreads are log2 of a standard deviation, in integer units of a 16th of an octave.
constexpr int kUnit = 16;
constexpr int kLowest = -4 * kUnit, kHighest = 15 * kUnit;  // of one row or column
// Below this hardly an integer differs from 0, and finer distinctions gain nothing.
constexpr int kLowestClass = -2 * kUnit - kUnit / 2;
constexpr int kRowReach = 3 * kUnit;  // rows below the middle one that get classes of their own
// A context of larger spread codes its low bits raw: 31, the escape, is then 4 deviations away.
constexpr int kWidestSpread = 3 * kUnit - 2;

// E|round(s n)| for a standard normal n and s = 2^(spread / 16): what the mean magnitude of
// integers of a given spread is.
double MeanMagnitude(int spread) {
  const double s = std::exp2(spread / static_cast<double>(kUnit));
  if (s > 8) return s * std::sqrt(2 / M_PI);
  double sum = 0;
  for (int j = 1; j <= 10 * s + 1; ++j) sum += std::erfc((j - 0.5) / (s * std::sqrt(2)));
  return sum;
}

// MeanMagnitude of the sum of any two spreads.
const std::vector<double>& Magnitudes() {
  static const std::vector<double> table = [] {
    std::vector<double> values;
    for (int spread = 2 * kLowest; spread <= 2 * kHighest; ++spread) {
      values.push_back(MeanMagnitude(spread));
    }
    return values;
  }();
  return table;
}

// The spread of each line (row or column) that explains the sum of its magnitudes, given the
// spreads of the lines across. As in iterative proportional fitting, only the marginal sums are
// read, so that one pass over the integers is enough.
std::vector<int> FitSpreads(const std::vector<double>& sums, const std::vector<int>& across) {
  std::vector<int64_t> histogram(kHighest - kLowest + 1);
  for (const int spread : across) ++histogram[spread - kLowest];
  std::vector<double> expected(kHighest - kLowest + 1);  // sum of a line of each spread; ascending
  for (size_t a = 0; a < histogram.size(); ++a) {
    if (histogram[a] == 0) continue;
    for (size_t b = 0; b < expected.size(); ++b) expected[b] += histogram[a] * Magnitudes()[a + b];
  }
  std::vector<int> spreads(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    const auto above = std::lower_bound(expected.begin(), expected.end(), sums[i]);
    spreads[i] = std::min<int>(kHighest, kLowest + static_cast<int>(above - expected.begin()));
  }
  return spreads;
}

struct Spreads {
  std::vector<int> rows, cols;
};

Spreads FitSpreads(absl::Span<const int32_t> z, int64_t rows, int64_t cols) {
  std::vector<double> row_sums(rows), col_sums(cols);
  std::vector<uint32_t> panel(cols);  // sums of 64 rows, whose clipped magnitudes can not overflow
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* row = z.data() + r * cols;
    uint64_t sum = 0;
    for (int64_t c = 0; c < cols; ++c) {
      const uint32_t magnitude = static_cast<uint32_t>(std::clamp(row[c], -65536, 65536));
      const uint32_t positive = row[c] < 0 ? 0 - magnitude : magnitude;
      sum += positive;
      panel[c] += positive;
    }
    row_sums[r] = static_cast<double>(sum);
    if (r % 64 != 63 && r != rows - 1) continue;
    for (int64_t c = 0; c < cols; ++c) col_sums[c] += panel[c];
    std::fill(panel.begin(), panel.end(), 0);
  }
  constexpr int kRounds = 3;
  Spreads spreads = {std::vector<int>(rows, 0), {}};
  for (int i = 0; i < kRounds; ++i) {
    spreads.cols = FitSpreads(col_sums, spreads.rows);
    spreads.rows = FitSpreads(row_sums, spreads.cols);
  }
  return spreads;
}

int Median(std::vector<int> values) {
  const auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The class 0 of lines is `origin`; returns that of each.
std::vector<uint8_t> Classes(const std::vector<int>& spreads, int origin, int step) {
  std::vector<uint8_t> classes;
  for (const int spread : spreads) {
    const int steps = (std::max(0, spread - origin) + step / 2) / step;
    classes.push_back(static_cast<uint8_t>(std::min(steps, kEntropyMaxContexts - 1)));
  }
  return classes;
}

uint8_t ShiftFor(int spread) {
  const int octaves = (std::max(0, spread - kWidestSpread) + kUnit - 1) / kUnit;
  return static_cast<uint8_t>(std::min(octaves, kEntropyMaxShift));
}

// Everything of a model but its frequencies. `step`: width of a class; with `by_row` false, rows
// have one class.
EntropyModel Classify(const Spreads& spreads, int step, bool by_row) {
  const int row_origin = std::max(*std::min_element(spreads.rows.begin(), spreads.rows.end()),
                                  Median(spreads.rows) - kRowReach);
  const int col_origin =
      std::max(*std::min_element(spreads.cols.begin(), spreads.cols.end()), kLowestClass);
  EntropyModel model;
  model.row_class = by_row ? Classes(spreads.rows, row_origin, step)
                           : std::vector<uint8_t>(spreads.rows.size(), 0);
  model.col_class = Classes(spreads.cols, col_origin, step);
  model.contexts =
      std::min(kEntropyMaxContexts,
               *std::max_element(model.row_class.begin(), model.row_class.end()) +
                   *std::max_element(model.col_class.begin(), model.col_class.end()) + 1);
  const int lowest = (by_row ? row_origin : Median(spreads.rows)) + col_origin;
  for (int k = 0; k < model.contexts; ++k) model.shifts.push_back(ShiftFor(lowest + k * step));
  return model;
}

EntropyModel OneContext(const Spreads& spreads) {
  EntropyModel model = Classify(spreads, 4 * kHighest, /*by_row=*/false);
  model.shifts[0] = ShiftFor(Median(spreads.rows) + Median(spreads.cols));
  return model;
}

uint64_t Sum(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

// Bytes of a context's head and table, up to a few: counts stand in for frequencies.
int64_t TableBytes(const Counts& counts, uint64_t total) {
  int first = kEntropySymbols, last = 0, wide = 0;
  for (int s = 0; s < entropy::kEscapeSymbol; ++s) {
    if (counts[s] == 0) continue;
    first = std::min(first, s);
    last = s;
    wide += counts[s] * uint64_t{32} >= total;  // a frequency of 128 takes a second byte
  }
  return 4 + std::max(0, last - first + 1) + wide;
}

// Bits of a context's symbols and escapes (its raw low bits are not a choice), and of its table.
// Counts of a sample stand for `scale` times as many, and their entropy is too low by half a nat
// for each free frequency.
double ContextBits(const Counts& counts, double scale) {
  const uint64_t total = Sum(counts);
  if (total == 0) return 8;
  double bits = 16.0 * counts[entropy::kEscapeSymbol];
  int used = 0;
  for (const uint32_t n : counts) {
    if (n == 0) continue;
    ++used;
    bits += n * std::log2(static_cast<double>(total) / n);
  }
  constexpr double kHalfNat = 0.5 * M_LOG2E;
  return scale * bits + (scale - 1) * (used - 1) * kHalfNat + 8.0 * TableBytes(counts, total);
}

double ClassBits(const std::vector<uint8_t>& classes) {
  Counts counts = {};
  for (const uint8_t c : classes) ++counts[c];
  double bits = 0;
  for (const uint32_t n : counts) {
    if (n > 0) bits += n * std::log2(static_cast<double>(classes.size()) / n);
  }
  return bits;
}

double ModelBits(const EntropyModel& model, const std::vector<Counts>& counts, double scale) {
  double bits = ClassBits(model.row_class) + ClassBits(model.col_class);
  for (int k = 0; k < model.contexts; ++k) {
    bits += ContextBits(counts[k], scale) + scale * model.shifts[k] * Sum(counts[k]);
  }
  return bits;
}

// The cheapest of several widths of a class, judged by a sample of the rows.
EntropyModel ChooseClasses(absl::Span<const int32_t> z, int64_t rows, int64_t cols) {
  constexpr int64_t kSample = 200000;
  const int64_t row_step = std::max<int64_t>(1, rows * cols / kSample);
  const double scale = static_cast<double>(rows) / ((rows + row_step - 1) / row_step);
  const Spreads spreads = FitSpreads(z, rows, cols);
  const EntropyModel candidates[] = {
      OneContext(spreads), Classify(spreads, kUnit / 4, true), Classify(spreads, kUnit / 4, false),
      Classify(spreads, kUnit / 2, true), Classify(spreads, kUnit, true)};
  const EntropyModel* best = nullptr;
  double least = 0;
  for (const EntropyModel& model : candidates) {
    const double bits =
        ModelBits(model, entropy::CountSymbols(model, z, rows, cols, row_step), scale);
    if (best != nullptr && bits >= least) continue;
    best = &model;
    least = bits;
  }
  return *best;
}

// Neighbouring contexts that share a table.
struct Merged {
  int first, end, shift;
  Counts counts;
  double bits;
};

Merged Join(const Merged& a, const Merged& b) {
  Merged joined = {a.first, b.end, Sum(a.counts) == 0 ? b.shift : a.shift, a.counts, 0};
  for (int s = 0; s < kEntropySymbols; ++s) joined.counts[s] += b.counts[s];
  joined.bits = ContextBits(joined.counts, 1);
  return joined;
}

bool Joinable(const Merged& a, const Merged& b) {
  return a.shift == b.shift || Sum(a.counts) == 0 || Sum(b.counts) == 0;
}

// Joins neighbours as long as the tables saved are worth more than what the symbols then cost.
std::vector<Merged> MergeContexts(const EntropyModel& model, const std::vector<Counts>& counts) {
  std::vector<Merged> groups;
  for (int k = 0; k < model.contexts; ++k) {
    groups.push_back({k, k + 1, model.shifts[k], counts[k], ContextBits(counts[k], 1)});
  }
  for (;;) {
    size_t best = groups.size();
    double best_gain = 0;
    Merged best_join = {};
    for (size_t i = 0; i + 1 < groups.size(); ++i) {
      if (!Joinable(groups[i], groups[i + 1])) continue;
      const Merged joined = Join(groups[i], groups[i + 1]);
      const double gain = groups[i].bits + groups[i + 1].bits - joined.bits;
      if (gain <= best_gain) continue;
      best = i;
      best_gain = gain;
      best_join = joined;
    }
    if (best == groups.size()) return groups;
    groups[best] = best_join;
    groups.erase(groups.begin() + best + 1);
  }
}

}  // namespace

EntropyModel FitEntropyModel(absl::Span<const int32_t> z, int64_t rows, int64_t cols) {
  EntropyModel model = ChooseClasses(z, rows, cols);
  const std::vector<Counts> counts = entropy::CountSymbols(model, z, rows, cols, 1);
  model.frequencies.resize(model.contexts * kEntropySymbols);
  for (const Merged& group : MergeContexts(model, counts)) {
    const entropy::Frequencies f = entropy::Normalize(group.counts);
    for (int k = group.first; k < group.end; ++k) {
      model.shifts[k] = static_cast<uint8_t>(group.shift);
      std::copy(f.begin(), f.end(), model.frequencies.begin() + k * kEntropySymbols);
    }
  }
  return model;
}

}  // namespace babai
