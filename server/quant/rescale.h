// Stage S8: closed-form refits of row and column scales after the codes are fixed. For Q = diag(t)
// P diag(g) with P as decoded, tr((W* - Q) H (W* - Q)') is quadratic in t for fixed g and in g for
// fixed t:
//   g solves (H o (P' diag(t^2) P)) g = diag(P' diag(t) W* H),   t_r = <W*_r H, q_r> / (q_r H
//   q_r'), q = P diag(g)
// Source: WaterSIC, arXiv:2603.04956 (there with unbounded integers).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"

namespace babai {

struct Rescaling {
  std::vector<float> rows;     // t [n]; 1 where not asked for
  std::vector<float> columns;  // g [k]; 1 where not asked for
};

// Factors for p [n, k] towards w [n, k] in the metric h [k, k] (symmetric, positive definite).
// Factors stay inside [0.25, 2]: codes that need more are wrong in another way.
absl::StatusOr<Rescaling> FitRescaling(absl::Span<const float> w, absl::Span<const float> p,
                                       absl::Span<const float> h, int64_t n, int64_t k, bool rows,
                                       bool columns, ThreadPool& pool);

// tr((w - q) h (w - q)'), each row's part.
absl::StatusOr<std::vector<double>> RowLosses(absl::Span<const float> w, absl::Span<const float> q,
                                              absl::Span<const float> h, int64_t n, int64_t k);

}  // namespace babai
