// H after dead columns, ordering and damping, factored once for all the linears of an input group.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/quant/recipe.h"

namespace babai {

// An input whose activity diag(H) is below 1/1000 of the MEDIAN is dead: its row and column of H
// are cut off (its diagonal stays, floored there), so that its weights are rounded to the nearest
// value and neither pass errors on nor take any. They are still stored: nothing is lost if it wakes
// up.
struct Factor {
  int64_t k = 0;
  // order[p] = original column at position p; the sweep goes from k-1 to 0
  std::vector<int32_t> order;
  std::vector<double> l;       // [k, k] row-major lower Cholesky factor, in sweep order
  std::vector<double> diag_h;  // diag of the undamped H, original order
  double damping = 0;          // absolute value added to the diagonal
  int damping_doublings = 0;   // 0 unless the first factorization failed
  int64_t dead_columns = 0;
};

// What a second moment's diagonal alone decides before the factorization.
struct DampingPlan {
  std::vector<double> diag;   // floored where the input is dead, undamped; original order
  std::vector<uint8_t> dead;  // 1 = dead
  int64_t dead_columns = 0;
  double mean = 0;  // of the given diagonal: what damping is a fraction of
};
// FailedPrecondition HESSIAN_NOT_POSITIVE_DEFINITE: it is all zero, or not finite.
absl::StatusOr<DampingPlan> PlanDamping(absl::Span<const double> diag);

// A recipe's damping for a second moment of so many tokens. With fewer than two tokens an input the
// moment is (nearly) singular by construction: directions that it calls free are only unseen, and
// what follows the factor there, as column steps do, would be arbitrary. There damping is at least
// 0.01, unless it is 0.
double DampingFor(double damping, int64_t tokens, int64_t inputs);

// A factorization that fails is tried again with twice the damping, so often.
inline constexpr int kMostDampingDoublings = 6;
// FailedPrecondition HESSIAN_NOT_POSITIVE_DEFINITE: not even with `relative` of the mean diagonal.
absl::Status NoCholeskyFactor(double relative);

// Factors `hessian` [k, k] (symmetric) with `damping` times its mean diagonal added.
// FailedPrecondition HESSIAN_NOT_POSITIVE_DEFINITE: no factor after 6 doublings of the damping, or
// H is all zero.
absl::StatusOr<Factor> FactorHessian(std::vector<double> hessian, Order order, double damping);

// L_pp^2 by original column [cols]: what a unit of squared error in a column costs if every other
// error stays, the part of its activity that no column quantized after it can make up for. 1
// without a factor.
std::vector<double> SquaredPivots(const Factor* factor, int64_t cols);

// The damped H = L L' [k, k] in original column order, fp32.
absl::StatusOr<std::vector<float>> DampedHessian(const Factor& factor);

}  // namespace babai
