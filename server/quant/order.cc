#include "server/quant/order.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "server/quant/linalg.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// Columns of the pivoted factor that are collected before the Schur complement is updated by a
// GEMM.
constexpr int64_t kPanel = 64;

// A Cholesky factorization with the smallest pivot next. Rows are never moved: a chosen column
// stays where it is and is marked by an infinite pivot.
class MinPivot {
 public:
  MinPivot(const std::vector<double>& h, int64_t k)
      : k_(k), schur_(h), panel_(kPanel * k), pivots_(k) {
    for (int64_t i = 0; i < k; ++i) pivots_[i] = h[i * k + i];
  }

  absl::StatusOr<std::vector<int32_t>> Run() {
    std::vector<int32_t> order;
    order.reserve(k_);
    while (static_cast<int64_t>(order.size()) < k_) {
      const int64_t next = std::min_element(pivots_.begin(), pivots_.end()) - pivots_.begin();
      if (!(pivots_[next] > 0)) {
        return Refuse(absl::StatusCode::kFailedPrecondition, reason::kHessianNotPositiveDefinite,
                      "", "a pivot is not positive");
      }
      order.push_back(static_cast<int32_t>(next));
      Eliminate(next);
      if (filled_ < kPanel) continue;
      if (absl::Status s = linalg::SubtractGram(panel_.data(), kPanel, k_, schur_.data()); !s.ok())
        return s;
      filled_ = 0;
    }
    return order;
  }

 private:
  // Appends the factor's column for pivot `next` to the panel and takes its square off all pivots.
  void Eliminate(int64_t next) {
    double* column = panel_.data() + filled_ * k_;
    std::copy_n(schur_.data() + next * k_, k_, column);
    for (int64_t u = 0; u < filled_; ++u) {
      const double* earlier = panel_.data() + u * k_;
      const double factor = earlier[next];
      for (int64_t i = 0; i < k_; ++i) column[i] -= factor * earlier[i];
    }
    const double inverse = 1 / std::sqrt(pivots_[next]);
    for (int64_t i = 0; i < k_; ++i) {
      column[i] *= inverse;
      pivots_[i] -= column[i] * column[i];
    }
    pivots_[next] = std::numeric_limits<double>::infinity();
    ++filled_;
  }

  const int64_t k_;
  int64_t filled_ = 0;         // columns in the panel
  std::vector<double> schur_;  // [k, k] up to date except for the panel
  std::vector<double> panel_;  // [kPanel, k]
  std::vector<double> pivots_;
};

}  // namespace

std::vector<int32_t> DiagonalOrder(Order order, absl::Span<const double> diag) {
  std::vector<int32_t> columns(diag.size());
  std::iota(columns.begin(), columns.end(), 0);
  if (order == Order::kActivation) {
    std::stable_sort(columns.begin(), columns.end(),
                     [&](int32_t a, int32_t b) { return diag[a] < diag[b]; });
  }
  return columns;
}

absl::StatusOr<std::vector<int32_t>> SweepOrder(Order order, const std::vector<double>& h,
                                                int64_t k) {
  if (order == Order::kMinPivot) return MinPivot(h, k).Run();
  std::vector<double> diag(k);
  for (int64_t i = 0; i < k; ++i) diag[i] = h[i * k + i];
  return DiagonalOrder(order, diag);
}

}  // namespace babai
