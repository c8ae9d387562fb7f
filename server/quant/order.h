// The order in which a sweep visits columns. Position k-1 is quantized first and position 0 last,
// when no other column is left to make up for its error.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/quant/recipe.h"

namespace babai {

// order[p] = column at position p, for the damped second moment h [k, k] (symmetric, all of it
// set).
//   kNatural     0, 1, ..., k-1
//   kActivation  ascending diag(h): the most active inputs are quantized first (GPTQ's act-order)
//   kMinPivot    position by position, the column with the smallest Schur complement: the basis
//   vector
//                that is shortest once projected off the earlier ones (arXiv:2507.18553, Algorithm
//                3)
// Equal candidates go by column number. FailedPrecondition: h is not positive definite (kMinPivot
// only).
absl::StatusOr<std::vector<int32_t>> SweepOrder(Order order, const std::vector<double>& h,
                                                int64_t k);

// The orders that the diagonal decides alone: kNatural and kActivation.
std::vector<int32_t> DiagonalOrder(Order order, absl::Span<const double> diag);

}  // namespace babai
