#include "server/quant/binary_fit.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/formats/float16.h"
#include "server/quant/tile.h"

namespace babai {
namespace {

constexpr int64_t kFitLanes = kLanes<float>;
constexpr int kMostBits = 4;
constexpr int kMostCuts = 2 * ((1 << kMaxIntermediateBits) - 1) + 1;
// Intermediate bits up to which every pattern is tried on every grid.
constexpr int kExhaustiveBits = 5;

using LaneValues = std::array<float, kFitLanes>;

// c0 + sum t_i x[i], t in {0, 1}.
struct Coding {
  int c0 = 0;
  std::array<int, kMostBits> x = {};
};

// Codings whose sums lie in 0..last, and those sums in ascending order.
struct Patterns {
  std::vector<Coding> codings;
  std::vector<uint8_t> points;  // [codings, 2^bits]
};

class PatternLister {
 public:
  // All numbers of a coding are multiples of `stride`.
  PatternLister(int bits, int last, int stride) : bits_(bits), last_(last), stride_(stride) {}
  Patterns List() {
    Extend({}, 0, last_);
    return std::move(out_);
  }

 private:
  void Extend(Coding coding, int chosen, int room) {
    if (chosen == bits_) {
      for (coding.c0 = 0; coding.c0 <= room; coding.c0 += stride_) Add(coding);
      return;
    }
    const int most = chosen > 0 ? std::min(room, coding.x[chosen - 1]) : room;
    for (int x = stride_; x <= most; x += stride_) {
      coding.x[chosen] = x;
      Extend(coding, chosen + 1, room - x);
    }
  }
  void Add(const Coding& coding) {
    out_.codings.push_back(coding);
    const size_t first = out_.points.size();
    for (int code = 0; code < 1 << bits_; ++code) {
      int sum = coding.c0;
      for (int i = 0; i < bits_; ++i) sum += (code >> i & 1) * coding.x[i];
      out_.points.push_back(static_cast<uint8_t>(sum));
    }
    std::sort(out_.points.begin() + first, out_.points.end());
  }

  const int bits_, last_, stride_;
  Patterns out_;
};

// Fractions of the range that the linear grid spans, about 0.
std::vector<float> Fractions() {
  std::vector<float> fractions;
  for (double f = 1; f > 0.2; f *= 0.9) fractions.push_back(static_cast<float>(f));
  return fractions;
}

// The linear grid value = low + step * point, for each lane.
struct LinearGrids {
  LaneValues low, step;
};

// The rows of a tile with the search over their grids and codings.
class TileSearch {
 public:
  TileSearch(const float* weights, const float* counts, int64_t cols, int last)
      : weights_(weights), counts_(counts), cols_(cols), last_(last) {
    low_.fill(0);
    high_.fill(0);
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t i = 0; i < kFitLanes; ++i) {
        low_[i] = std::min(low_[i], weights[c * kFitLanes + i]);
        high_[i] = std::max(high_[i], weights[c * kFitLanes + i]);
      }
    }
    error_.fill(HUGE_VALF);
    best_.low = best_.step = low_;
  }

  void TryFraction(float fraction, const Patterns& patterns, int count) {
    LinearGrids grids;
    for (int64_t i = 0; i < kFitLanes; ++i) {
      const float span = (high_[i] - low_[i]) * fraction;
      grids.low[i] = low_[i] * fraction;
      grids.step[i] = span > 0 ? span / static_cast<float>(last_) : 1.0f;
    }
    Try(grids, patterns, count);
  }
  // All of `patterns` on each lane's best grid so far.
  void Refine(const Patterns& patterns, int count) { Try(LinearGrids(best_), patterns, count); }

  // Bias and scales of a lane, in fp32.
  std::array<float, 1 + kMostBits> Table(int64_t lane, int bits) const {
    const Coding& coding = coding_[lane];
    std::array<float, 1 + kMostBits> out = {};
    float middle = static_cast<float>(coding.c0);
    for (int i = 0; i < bits; ++i) {
      const float half = static_cast<float>(coding.x[i]) / 2;
      middle += half;
      out[1 + i] = best_.step[lane] * half;
    }
    out[0] = best_.low[lane] + best_.step[lane] * middle;
    return out;
  }

 private:
  void Try(const LinearGrids& grids, const Patterns& patterns, int count) {
    Measure(grids);
    std::array<int32_t, kFitLanes> best;
    LaneValues error;
    FitOpsForCpu().best_patterns(
        {patterns.points.data(), static_cast<int64_t>(patterns.codings.size()), count, cuts_,
         mass_.data(), moment_.data()},
        best.data(), error.data());
    for (int64_t i = 0; i < kFitLanes; ++i) {
      const float all = (error[i] + square_[i]) * grids.step[i] * grids.step[i];
      if (!(all < error_[i])) continue;
      error_[i] = all;
      best_.low[i] = grids.low[i];
      best_.step[i] = grids.step[i];
      coding_[i] = patterns.codings[best[i]];
    }
  }
  void Measure(const LinearGrids& grids);

  const float* weights_;
  const float* counts_;
  const int64_t cols_;
  const int last_;
  LaneValues low_, high_, error_;
  LinearGrids best_;
  std::array<Coding, kFitLanes> coding_ = {};
  // Of the grids that are being tried, in units of their steps.
  alignas(64) float cuts_[kMostCuts * kFitLanes];
  alignas(64) LaneValues mass_, moment_;
  LaneValues square_;
};

// cuts[m] = 2 moment - m mass of the weights below m half steps: see PatternTile.
void TileSearch::Measure(const LinearGrids& grids) {
  const int cuts = 2 * last_ + 1;
  float below_mass[(kMostCuts + 1) * kFitLanes] = {},
                                     below_moment[(kMostCuts + 1) * kFitLanes] = {};
  mass_.fill(0);
  moment_.fill(0);
  square_.fill(0);
  for (int64_t c = 0; c < cols_; ++c) {
    for (int64_t i = 0; i < kFitLanes; ++i) {
      const float count = counts_[c * kFitLanes + i];
      const float t = (weights_[c * kFitLanes + i] - grids.low[i]) / grids.step[i];
      // The first cut that the weight is below.
      const float cut = std::min(std::max(std::floor(2 * t) + 1, 0.0f), static_cast<float>(cuts));
      const int64_t at = static_cast<int64_t>(cut) * kFitLanes + i;
      below_mass[at] += count;
      below_moment[at] += count * t;
      mass_[i] += count;
      moment_[i] += count * t;
      square_[i] += count * t * t;
    }
  }
  LaneValues mass = {}, moment = {};
  for (int m = 0; m < cuts; ++m) {
    for (int64_t i = 0; i < kFitLanes; ++i) {
      mass[i] += below_mass[m * kFitLanes + i];
      moment[i] += below_moment[m * kFitLanes + i];
      cuts_[m * kFitLanes + i] = 2 * moment[i] - static_cast<float>(m) * mass[i];
    }
  }
}

}  // namespace

absl::StatusOr<TableGrid> FitBinaryCoding(const FitInput& input, int bits, int intermediate_bits,
                                          ThreadPool& pool, const std::function<bool()>& stop) {
  const int last = (1 << intermediate_bits) - 1, count = 1 << bits;
  const bool two_rounds = intermediate_bits > kExhaustiveBits;
  const Patterns first = PatternLister(bits, last, two_rounds ? 2 : 1).List();
  const Patterns all = two_rounds ? PatternLister(bits, last, 1).List() : Patterns();
  const std::vector<float> fractions = Fractions();
  TableGrid grid = {bits, TableKind::kBinary, input.rows, input.cols, input.cols};
  grid.table.resize(input.rows * (1 + bits));
  std::atomic<bool> fits = true;
  const auto work = [&](TileRows part, uint8_t* scratch) {
    float* weights = reinterpret_cast<float*>(scratch);
    float* counts = weights + input.cols * kFitLanes;
    input.LoadLanes(part, kFitLanes, weights, counts);
    TileSearch search(weights, counts, input.cols, last);
    for (float fraction : fractions) search.TryFraction(fraction, first, count);
    if (two_rounds) search.Refine(all, count);
    for (int64_t i = 0; i < part.count; ++i) {
      const auto table = search.Table(i, bits);
      for (int v = 0; v < 1 + bits; ++v) {
        if (!(std::abs(table[v]) <= 65504)) fits = false;
        grid.table[(part.first + i) * (1 + bits) + v] = FloatToHalf(table[v]);
      }
    }
  };
  const int64_t scratch = 2 * input.cols * kFitLanes * static_cast<int64_t>(sizeof(float));
  if (absl::Status s = ForEachTile(input.rows, kFitLanes, scratch, pool, stop, work); !s.ok())
    return s;
  if (!fits) return WeightsTooLarge();
  return grid;
}

}  // namespace babai
