#include "server/quant/rescale.h"

#include <algorithm>
#include <string>

#include "kernels/cpu/token_products.h"
#include "server/quant/linalg.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr float kLeast = 0.25f, kMost = 2.0f;
constexpr int kRounds = 2;  // of columns, then rows: the second changes little, a third nothing
constexpr double kRidge = 1e-8;  // times the mean diagonal: columns whose codes are all 0

using Floats = std::vector<float>;

absl::StatusOr<Floats> TimesMetric(absl::Span<const float> a, absl::Span<const float> h, int64_t n,
                                   int64_t k) {
  Floats out(a.size());
  const absl::Status done = linalg::Multiply(a.data(), h.data(), out.data(), n, k, k);
  if (!done.ok()) return done;
  return out;
}

Floats Scaled(absl::Span<const float> p, int64_t n, int64_t k, const Rescaling& s) {
  Floats out(p.size());
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c) out[r * k + c] = s.rows[r] * p[r * k + c] * s.columns[c];
  }
  return out;
}

// gram [k, k] += p' p, lower triangle.
absl::Status AddGram(absl::Span<const float> p, int64_t n, int64_t k, double* gram,
                     ThreadPool& pool) {
  cpu::TokenPanels panels;
  for (int64_t row = 0; row < n; row += cpu::TokenPanels::kMostTokens) {
    const int64_t rows = std::min(cpu::TokenPanels::kMostTokens, n - row);
    if (auto status = panels.Fill(p.data() + row * k, nullptr, rows, k, pool); !status.ok()) {
      return Refuse(status.code(), reason::kOutOfMemory, "", std::string(status.message()));
    }
    cpu::AddGram(panels, gram, pool);
  }
  return absl::OkStatus();
}

// The normal equations of g for fixed t, solved. `wh` = W* H.
absl::Status FitColumns(absl::Span<const float> p, absl::Span<const float> wh,
                        absl::Span<const float> h, int64_t n, int64_t k, Rescaling& s,
                        ThreadPool& pool) {
  const Rescaling rows_only = {s.rows, Floats(k, 1.0f)};
  const Floats tp = Scaled(p, n, k, rows_only);
  std::vector<double> normal(static_cast<size_t>(k) * k, 0.0), right(k, 0.0);
  if (auto done = AddGram(tp, n, k, normal.data(), pool); !done.ok()) return done;
  double mean = 0;
  for (int64_t r = 0; r < k; ++r) {
    for (int64_t c = 0; c <= r; ++c) normal[r * k + c] *= h[r * k + c];
    for (int64_t c = r + 1; c < k; ++c) normal[r * k + c] = 0;
    mean += normal[r * k + r] / static_cast<double>(k);
  }
  if (!(mean > 0)) return absl::OkStatus();  // every code is 0: nothing to scale
  for (int64_t r = 0; r < k; ++r) normal[r * k + r] += kRidge * mean;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c) right[c] += static_cast<double>(tp[r * k + c]) * wh[r * k + c];
  }
  // Shrinks towards 1, not 0: the ridge times 1 on the right.
  for (int64_t c = 0; c < k; ++c) right[c] += kRidge * mean;
  const auto failed_at = linalg::Cholesky(normal.data(), k);
  if (!failed_at.ok()) return failed_at.status();
  if (*failed_at != 0) return absl::OkStatus();  // no better scales can be told: keep these
  if (auto done = linalg::SolveRight(normal.data(), k, right.data(), 1); !done.ok()) return done;
  for (int64_t c = 0; c < k; ++c)
    s.columns[c] = std::clamp(static_cast<float>(right[c]), kLeast, kMost);
  return absl::OkStatus();
}

absl::Status FitRows(absl::Span<const float> p, absl::Span<const float> wh,
                     absl::Span<const float> h, int64_t n, int64_t k, Rescaling& s) {
  const Rescaling columns_only = {Floats(n, 1.0f), s.columns};
  const Floats q = Scaled(p, n, k, columns_only);
  const auto qh = TimesMetric(q, h, n, k);
  if (!qh.ok()) return qh.status();
  for (int64_t r = 0; r < n; ++r) {
    double wanted = 0, own = 0;
    for (int64_t i = r * k; i < (r + 1) * k; ++i) {
      wanted += static_cast<double>(wh[i]) * q[i];
      own += static_cast<double>((*qh)[i]) * q[i];
    }
    s.rows[r] = own > 0 ? std::clamp(static_cast<float>(wanted / own), kLeast, kMost) : 1.0f;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Rescaling> FitRescaling(absl::Span<const float> w, absl::Span<const float> p,
                                       absl::Span<const float> h, int64_t n, int64_t k, bool rows,
                                       bool columns, ThreadPool& pool) {
  Rescaling s = {Floats(n, 1.0f), Floats(k, 1.0f)};
  const auto wh = TimesMetric(w, h, n, k);
  if (!wh.ok()) return wh.status();
  for (int round = 0; round < (rows && columns ? kRounds : 1); ++round) {
    if (columns) {
      if (auto done = FitColumns(p, *wh, h, n, k, s, pool); !done.ok()) return done;
    }
    if (rows) {
      if (auto done = FitRows(p, *wh, h, n, k, s); !done.ok()) return done;
    }
  }
  return s;
}

absl::StatusOr<std::vector<double>> RowLosses(absl::Span<const float> w, absl::Span<const float> q,
                                              absl::Span<const float> h, int64_t n, int64_t k) {
  Floats error(w.size());
  for (size_t i = 0; i < error.size(); ++i) error[i] = w[i] - q[i];
  const auto eh = TimesMetric(error, h, n, k);
  if (!eh.ok()) return eh.status();
  std::vector<double> losses(n, 0.0);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = r * k; i < (r + 1) * k; ++i)
      losses[r] += static_cast<double>((*eh)[i]) * error[i];
  }
  return losses;
}

}  // namespace babai
