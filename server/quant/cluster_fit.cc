#include "server/quant/cluster_fit.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <new>
#include <vector>

#include "kernels/formats/float16.h"
#include "server/quant/tile.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int kMaxClusters = 16;
// Lloyd's steps shrink geometrically; the last of these move nothing that fp16 would show.
constexpr int kMaxSteps = 200;

using Means = std::array<double, kMaxClusters>;

// A row's weights in ascending order with running sums, so that any cluster (an interval) costs two
// look-ups.
class SortedRow {
 public:
  SortedRow(const FitInput& input, int64_t row) {
    for (int64_t c = 0; c < input.cols; ++c) {
      const int64_t at = row * input.cols + c;
      if (input.kept != nullptr && (*input.kept)[at] != 0) continue;
      points_.push_back({input.w[at], input.importance[c]});
    }
    std::sort(points_.begin(), points_.end(),
              [](const Point& a, const Point& b) { return a.value < b.value; });
    mass_ = moment_ = square_ = {0.0};
    for (const Point& p : points_) {
      mass_.push_back(mass_.back() + p.count);
      moment_.push_back(moment_.back() + double{p.count} * p.value);
      square_.push_back(square_.back() + double{p.count} * p.value * p.value);
    }
  }

  bool empty() const { return !(mass_.back() > 0); }
  Means EqualShares(int clusters) const;
  Means EqualParts(int clusters) const;
  // Moves the means to a local optimum and returns its squared error.
  double Lloyd(int clusters, Means& means) const;

 private:
  struct Point {
    float value, count;
  };
  size_t FirstAbove(double value) const {
    return std::partition_point(points_.begin(), points_.end(),
                                [&](const Point& p) { return p.value <= value; }) -
           points_.begin();
  }
  std::vector<Point> points_;
  std::vector<double> mass_, moment_, square_;  // of the points before
};

Means SortedRow::EqualShares(int clusters) const {
  Means means = {};
  for (int i = 0; i < clusters; ++i) {
    const double share = mass_.back() * (i + 0.5) / clusters;
    const auto at = std::lower_bound(mass_.begin() + 1, mass_.end(), share) - mass_.begin() - 1;
    means[i] = points_[std::min<size_t>(at, points_.size() - 1)].value;
  }
  return means;
}

Means SortedRow::EqualParts(int clusters) const {
  Means means = {};
  const double low = points_.front().value, high = points_.back().value;
  for (int i = 0; i < clusters; ++i) means[i] = low + (high - low) * (i + 0.5) / clusters;
  return means;
}

double SortedRow::Lloyd(int clusters, Means& means) const {
  double error = 0;
  for (int step = 0; step < kMaxSteps; ++step) {
    Means next = means;
    bool moved = false;
    size_t begin = 0;
    error = 0;
    for (int i = 0; i < clusters; ++i) {
      const size_t end =
          i + 1 < clusters ? FirstAbove((means[i] + means[i + 1]) / 2) : points_.size();
      const double mass = mass_[end] - mass_[begin], moment = moment_[end] - moment_[begin];
      // An empty cluster stays where it is: between its neighbours, which may come to need it.
      if (mass > 0) next[i] = moment / mass;
      error += square_[end] - square_[begin] - 2 * next[i] * moment + next[i] * next[i] * mass;
      moved |= std::abs(next[i] - means[i]) > 1e-5 * std::abs(means[i]);
      begin = end;
    }
    means = next;
    if (!moved) break;
  }
  return error;
}

Means Cluster(const SortedRow& row, int clusters) {
  Means shares = row.EqualShares(clusters), parts = row.EqualParts(clusters);
  return row.Lloyd(clusters, shares) < row.Lloyd(clusters, parts) ? shares : parts;
}

}  // namespace

absl::StatusOr<TableGrid> FitClusters(const FitInput& input, int bits, ThreadPool& pool,
                                      const std::function<bool()>& stop) {
  const int clusters = 1 << bits;
  TableGrid grid = {bits, TableKind::kRow, input.rows, input.cols, input.cols};
  grid.table.assign(input.rows * clusters, 0);
  std::atomic<bool> fits = true, no_memory = false;
  const auto work = [&](TileRows part, uint8_t*) {
    try {
      for (int64_t row = part.first; row < part.first + part.count; ++row) {
        const SortedRow sorted(input, row);
        if (sorted.empty()) continue;
        const Means means = Cluster(sorted, clusters);
        for (int i = 0; i < clusters; ++i) {
          if (!(std::abs(means[i]) <= 65504)) fits = false;
          grid.table[row * clusters + i] = FloatToHalf(static_cast<float>(means[i]));
        }
      }
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  };
  if (absl::Status s = ForEachTile(input.rows, kLanes<float>, 64, pool, stop, work); !s.ok())
    return s;
  if (no_memory) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory to cluster a row");
  }
  if (!fits) return WeightsTooLarge();
  return grid;
}

}  // namespace babai
