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
// Cells that a row is cut into: no more points than a row's share, no wider than a part of its
// range, so that neither the crowd near 0 nor the few outliers lose their places.
constexpr int64_t kCellShares = 128;
constexpr double kCellParts = 256;
// Lloyd's steps from nearly the best clusters: what is left to move after these, fp16 does not
// show.
constexpr int kLloydSteps = 30;

using Means = std::array<double, kMaxClusters>;

// Running sums over a row's weights in ascending order: any interval costs two look-ups.
struct Sums {
  double mass = 0, moment = 0, square = 0;

  friend Sums operator-(const Sums& a, const Sums& b) {
    return {a.mass - b.mass, a.moment - b.moment, a.square - b.square};
  }
  double mean() const { return moment / mass; }
  // Squared error of all points to their mean.
  double error() const { return mass > 0 ? square - moment * moment / mass : 0; }
};

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
    below_.push_back({});
    for (const Point& p : points_) {
      Sums sums = below_.back();
      sums.mass += p.count;
      sums.moment += double{p.count} * p.value;
      sums.square += double{p.count} * p.value * p.value;
      below_.push_back(sums);
    }
  }

  bool empty() const { return !(below_.back().mass > 0); }
  // Running sums at the borders of the row's cells, from nothing to everything.
  std::vector<Sums> Cells() const;
  void Lloyd(int clusters, Means& means) const;

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
  std::vector<Sums> below_;  // [points + 1]
};

std::vector<Sums> SortedRow::Cells() const {
  const auto count = static_cast<int64_t>(points_.size());
  const int64_t most = std::max<int64_t>(1, count / kCellShares);
  const double width = (double{points_.back().value} - points_.front().value) / kCellParts;
  std::vector<Sums> cells = {below_[0]};
  for (int64_t begin = 0, i = 1; i <= count; ++i) {
    if (i < count && i - begin < most && points_[i].value - points_[begin].value <= width) continue;
    cells.push_back(below_[i]);
    begin = i;
  }
  return cells;
}

void SortedRow::Lloyd(int clusters, Means& means) const {
  for (int step = 0; step < kLloydSteps; ++step) {
    Means next = means;
    bool moved = false;
    size_t begin = 0;
    for (int i = 0; i < clusters; ++i) {
      const size_t end =
          i + 1 < clusters ? FirstAbove((means[i] + means[i + 1]) / 2) : points_.size();
      const Sums sums = below_[end] - below_[begin];
      if (sums.mass > 0) next[i] = sums.mean();
      moved |= std::abs(next[i] - means[i]) > 1e-5 * std::abs(means[i]);
      begin = end;
    }
    means = next;
    if (!moved) break;
  }
}

// The best clusters of cells (running sums at their borders): clusters are intervals, the first
// border of the last one moves up with its end, so each of the divisions of a range of ends
// searches only between the borders of its neighbours (dynamic programming, divide and conquer).
class BestIntervals {
 public:
  explicit BestIntervals(const std::vector<Sums>& borders)
      : borders_(borders), ends_(static_cast<int>(borders.size())), error_(ends_), next_(ends_) {}

  Means Find(int clusters) {
    first_.assign(clusters * ends_, 0);
    for (int end = 0; end < ends_; ++end) error_[end] = (borders_[end] - borders_[0]).error();
    for (int k = 1; k < clusters; ++k) {
      Divide(first_.data() + k * ends_, 0, ends_ - 1, 0, ends_ - 1);
      error_.swap(next_);
    }
    Means means = {};
    for (int k = clusters - 1, end = ends_ - 1; k >= 0; --k) {
      const int begin = first_[k * ends_ + end];
      const Sums sums = borders_[end] - borders_[begin];
      // More clusters than cells: what is left over repeats a value.
      means[k] = sums.mass > 0 ? sums.mean() : k + 1 < clusters ? means[k + 1] : 0;
      end = begin;
    }
    return means;
  }

 private:
  // next_ and first for ends [low, high], whose last clusters begin in [from, to].
  void Divide(int* first, int low, int high, int from, int to) {
    if (low > high) return;
    const int end = (low + high) / 2;
    double least = HUGE_VAL;
    int best = from;
    for (int begin = from; begin <= std::min(to, end); ++begin) {
      const double error = error_[begin] + (borders_[end] - borders_[begin]).error();
      if (error < least) {
        least = error;
        best = begin;
      }
    }
    next_[end] = least;
    first[end] = best;
    Divide(first, low, end - 1, from, best);
    Divide(first, end + 1, high, best, to);
  }

  const std::vector<Sums>& borders_;
  const int ends_;
  std::vector<double> error_, next_;  // of the best clusters of the cells before each border
  std::vector<int> first_;            // [clusters, ends] where the last one begins
};

Means Cluster(const SortedRow& row, int clusters) {
  const std::vector<Sums> cells = row.Cells();
  Means means = BestIntervals(cells).Find(clusters);
  row.Lloyd(clusters, means);
  return means;
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
