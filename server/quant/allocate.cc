#include "server/quant/allocate.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// Indices of the lower convex hull of (bits, costs), from the smallest point on; costs fall along
// it.
std::vector<size_t> Hull(const RateCurve& c) {
  const auto slope = [&](size_t a, size_t b) {
    return (c.costs[b] - c.costs[a]) / (c.bits[b] - c.bits[a]);
  };
  std::vector<size_t> hull;
  for (size_t i = 0; i < c.bits.size(); ++i) {
    if (!hull.empty() && c.costs[i] >= c.costs[hull.back()]) continue;
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), i))
      hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

// The next step of one linear along its hull, and what a stored bit of it saves.
struct Step {
  double gain = 0, bits = 0;
  size_t curve = 0, position = 0;
  bool operator<(const Step& o) const {
    return gain != o.gain ? gain < o.gain : curve > o.curve;  // ties: the first linear first
  }
};

}  // namespace

absl::StatusOr<std::vector<size_t>> AllocateBits(const std::vector<RateCurve>& curves,
                                                 double target_bits) {
  std::vector<std::vector<size_t>> hulls;
  double budget = 0, least = 0;
  for (const RateCurve& c : curves) {
    hulls.push_back(Hull(c));
    const auto weights = static_cast<double>(c.weights);
    budget += target_bits * weights;
    least += c.bits[hulls.back()[0]] * weights;
  }
  if (least > budget) {
    return InvalidField("recipe.target_bits",
                        absl::StrCat("the smallest size of every linear together takes ",
                                     least / budget * target_bits, " bits a weight"));
  }
  std::priority_queue<Step> steps;
  const auto push = [&](size_t curve, size_t position) {
    const RateCurve& c = curves[curve];
    if (position + 1 >= hulls[curve].size()) return;
    const size_t a = hulls[curve][position], b = hulls[curve][position + 1];
    const double bits = (c.bits[b] - c.bits[a]) * static_cast<double>(c.weights);
    steps.push({(c.costs[a] - c.costs[b]) / bits, bits, curve, position + 1});
  };
  std::vector<size_t> chosen;
  for (size_t i = 0; i < curves.size(); ++i) {
    chosen.push_back(hulls[i][0]);
    push(i, 0);
  }
  // Best steps first. One that no longer fits is passed over: a smaller one behind it may.
  double left = budget - least;
  while (!steps.empty()) {
    const Step step = steps.top();
    steps.pop();
    if (step.bits > left) continue;
    left -= step.bits;
    chosen[step.curve] = hulls[step.curve][step.position];
    push(step.curve, step.position);
  }
  return chosen;
}

RateCurve Refine(const RateCurve& curve, double first, double last, double step) {
  RateCurve fine;
  fine.weights = curve.weights;
  const size_t points = curve.bits.size();
  for (int64_t i = 0; first + static_cast<double>(i) * step <= last + step / 2; ++i) {
    const double bits = first + static_cast<double>(i) * step;
    const size_t above =
        std::lower_bound(curve.bits.begin(), curve.bits.end(), bits) - curve.bits.begin();
    const size_t b = std::clamp<size_t>(above, 1, points - 1), a = b - 1;
    const double part = (bits - curve.bits[a]) / (curve.bits[b] - curve.bits[a]);
    const double log_cost =
        (1 - part) * std::log2(curve.costs[a]) + part * std::log2(curve.costs[b]);
    fine.bits.push_back(bits);
    fine.costs.push_back(std::exp2(log_cost));
  }
  return fine;
}

}  // namespace babai
