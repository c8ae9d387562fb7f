#include "server/quant/factor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/quant/linalg.h"
#include "server/quant/order.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// An input below this fraction of the median activity is dead. The median, because the mean of a
// heavy-tailed diagonal (the input of a gated MLP's last projection) would call most inputs dead.
constexpr double kDeadFraction = 1e-3;

absl::Status NotPositiveDefinite(std::string_view message) {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kHessianNotPositiveDefinite, "",
                message);
}

double Median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

double Mean(absl::Span<const double> v) {
  double sum = 0;
  for (double x : v) sum += x;
  return sum / static_cast<double>(v.size());
}

// A dead input keeps its own (floored) activity but is cut off from the others: its weights go to
// the nearest grid value and neither give errors to other columns nor take theirs.
void IsolateDeadColumns(std::vector<double>& h, const DampingPlan& plan, int64_t k) {
  for (int64_t d = 0; d < k; ++d) {
    if (plan.dead[d] == 0) continue;
    for (int64_t i = 0; i < k; ++i) h[d * k + i] = h[i * k + d] = 0;
    h[d * k + d] = plan.diag[d];
  }
}

// h in sweep order, lower triangle.
std::vector<double> Permuted(const std::vector<double>& h, const std::vector<int32_t>& order,
                             int64_t k) {
  std::vector<double> out(h.size());
  for (int64_t r = 0; r < k; ++r) {
    const double* row = h.data() + static_cast<int64_t>(order[r]) * k;
    for (int64_t c = 0; c <= r; ++c) out[r * k + c] = row[order[c]];
  }
  return out;
}

void AddToDiagonal(std::vector<double>& h, int64_t k, double value) {
  for (int64_t i = 0; i < k; ++i) h[i * k + i] += value;
}

// Orders and factors `damped`; false if it is not positive definite.
absl::StatusOr<bool> TryFactor(const std::vector<double>& damped, Order order, Factor& f) {
  auto positions = SweepOrder(order, damped, f.k);
  if (ReasonOf(positions.status()) == reason::kHessianNotPositiveDefinite) return false;
  if (!positions.ok()) return positions.status();
  f.order = *std::move(positions);
  f.l = Permuted(damped, f.order, f.k);
  const auto failed_at = linalg::Cholesky(f.l.data(), f.k);
  if (!failed_at.ok()) return failed_at.status();
  return *failed_at == 0;
}

}  // namespace

absl::StatusOr<DampingPlan> PlanDamping(absl::Span<const double> diag) {
  DampingPlan plan = {{diag.begin(), diag.end()}, std::vector<uint8_t>(diag.size(), 0)};
  plan.mean = Mean(diag);
  if (!std::isfinite(plan.mean) || plan.mean <= 0) {
    return NotPositiveDefinite("every input of the layer is zero on the calibration data");
  }
  const double median = Median(plan.diag);
  const double floor = median > 0 ? kDeadFraction * median : plan.mean;
  for (size_t d = 0; d < diag.size(); ++d) {
    if (diag[d] > 0 && diag[d] >= kDeadFraction * median) continue;
    plan.diag[d] = std::max(diag[d], floor);
    plan.dead[d] = 1;
    ++plan.dead_columns;
  }
  return plan;
}

double DampingFor(double damping, int64_t tokens, int64_t inputs) {
  constexpr double kLeast = 0.01;
  return damping == 0 || tokens >= 2 * inputs ? damping : std::max(damping, kLeast);
}

absl::Status NoCholeskyFactor(double relative) {
  return NotPositiveDefinite(absl::StrCat(
      "the second moment of the layer's inputs has no Cholesky factor even with ", relative,
      " of its mean diagonal added: use more "
      "calibration data or a larger recipe.damping"));
}

absl::StatusOr<Factor> FactorHessian(std::vector<double> hessian, Order order, double damping) {
  Factor f;
  f.k = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(hessian.size()))));
  if (f.k == 0 || f.k * f.k != static_cast<int64_t>(hessian.size())) {
    return InvalidField("hessian", "must be square and not empty");
  }
  for (int64_t i = 0; i < f.k; ++i) f.diag_h.push_back(hessian[i * f.k + i]);
  const auto plan = PlanDamping(f.diag_h);
  if (!plan.ok()) return plan.status();
  IsolateDeadColumns(hessian, *plan, f.k);
  f.dead_columns = plan->dead_columns;
  f.damping = damping * plan->mean;
  AddToDiagonal(hessian, f.k, f.damping);
  for (;; ++f.damping_doublings) {
    const auto done = TryFactor(hessian, order, f);
    if (!done.ok()) return done.status();
    if (*done) return f;
    if (f.damping_doublings == kMostDampingDoublings || f.damping == 0) break;
    AddToDiagonal(hessian, f.k, f.damping);  // twice what it was
    f.damping *= 2;
  }
  return NoCholeskyFactor(f.damping / plan->mean);
}

std::vector<double> SquaredPivots(const Factor* factor, int64_t cols) {
  std::vector<double> out(cols, 1.0);
  for (int64_t p = 0; factor != nullptr && p < cols; ++p) {
    const double l = factor->l[p * cols + p];
    out[factor->order[p]] = l * l;
  }
  return out;
}

absl::StatusOr<std::vector<float>> DampedHessian(const Factor& f) {
  const int64_t k = f.k;
  const std::vector<float> l(f.l.begin(), f.l.end());
  std::vector<float> sweep(l.size()), h(l.size());
  const absl::Status done = linalg::MultiplyTransposed(l.data(), l.data(), sweep.data(), k, k, k);
  if (!done.ok()) return done;
  for (int64_t r = 0; r < k; ++r) {
    float* out = h.data() + f.order[r] * k;
    for (int64_t c = 0; c < k; ++c) out[f.order[c]] = sweep[r * k + c];
  }
  return h;
}

}  // namespace babai
