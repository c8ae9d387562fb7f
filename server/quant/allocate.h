// Stage S6: sharing out bits among the linears of a model under one target.
//
// Each linear can be had at several sizes; what a size costs the model is its measured loss times
// the model's sensitivity to it. On the lower convex hull of each curve one multiplier, the price
// of a bit, picks a point; the price is found that meets the target. Source: Shoham and Gersho 1988
// (Lagrangian bit allocation); for quantized networks arXiv:2112.11438.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

// One linear's choices, bits ascending.
struct RateCurve {
  int64_t weights = 0;
  std::vector<double> bits;   // stored bits a weight
  std::vector<double> costs;  // to the model, at these bits; descending but for noise
};

// For each curve the index of the chosen point: the least total cost with at most `target_bits` a
// weight over all of them. InvalidArgument naming recipe.target_bits: not even the smallest points
// fit.
absl::StatusOr<std::vector<size_t>> AllocateBits(const std::vector<RateCurve>& curves,
                                                 double target_bits);

// The curve at finer bits, from `first` to `last` in steps of `step`: log cost is interpolated, and
// beyond its ends goes on as the nearest two points do. Requires at least two points, costs > 0.
RateCurve Refine(const RateCurve& curve, double first, double last, double step);

}  // namespace babai
