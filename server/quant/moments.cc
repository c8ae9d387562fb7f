#include "server/quant/moments.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "server/quant/linalg.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The sum of kGramTokens squares below this still fits in fp32.
constexpr float kLargestInput = 1e17f;

// Compares bit patterns: without their sign, infinities and NaNs are the largest of all.
bool AllBelow(const float* x, int64_t count, float limit) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu);
  }
  return largest < std::bit_cast<uint32_t>(limit);
}

absl::Status NotFinite() {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "",
                "an input of the layer is not a number, infinite or above 1e17 on the calibration "
                "data: the model overflows on it; use other data or a wider dense type");
}

// The mean of sums over tokens.
std::vector<double> Mean(std::vector<double> sums, int64_t tokens) {
  const double scale = tokens > 0 ? 1.0 / static_cast<double>(tokens) : 0.0;
  for (double& x : sums) x *= scale;
  return sums;
}

// From the lower triangle.
void Symmetrize(std::vector<double>& m, int64_t k) {
  for (int64_t r = 0; r < k; ++r) {
    for (int64_t c = 0; c < r; ++c) m[c * k + r] = m[r * k + c];
  }
}

std::vector<float> Difference(const float* a, const float* b, int64_t count) {
  std::vector<float> d(count);
  for (int64_t i = 0; i < count; ++i) d[i] = a[i] - b[i];
  return d;
}

}  // namespace

Moments::Moments(int64_t k) : k_(k), gram_(static_cast<size_t>(k) * k, 0.0) {}

absl::Status Moments::Add(const float* x, int64_t tokens) {
  if (!AllBelow(x, tokens * k_, kLargestInput)) return NotFinite();
  const absl::Status added = linalg::AddGram(x, tokens, k_, gram_.data());
  if (added.ok()) tokens_ += tokens;
  return added;
}

std::vector<double> Moments::Hessian() const {
  std::vector<double> h = Mean(gram_, tokens_);
  Symmetrize(h, k_);
  return h;
}

DriftMoments::DriftMoments(int64_t k, int64_t rows)
    : k_(k),
      rows_(rows),
      cross_(static_cast<size_t>(k) * k, 0.0),
      gram_(static_cast<size_t>(k) * k, 0.0),
      residual_cross_(static_cast<size_t>(rows) * k, 0.0),
      residual_mixed_(static_cast<size_t>(rows) * k, 0.0) {}

absl::Status DriftMoments::Add(const float* quantized, const float* original,
                               const float* residual_quantized, const float* residual_original,
                               int64_t tokens) {
  const std::vector<float> d = Difference(original, quantized, tokens * k_);
  if (!AllBelow(d.data(), tokens * k_, kLargestInput)) return NotFinite();
  absl::Status status = linalg::AddCross(d.data(), quantized, tokens, k_, k_, cross_.data());
  if (status.ok()) status = linalg::AddGram(d.data(), tokens, k_, gram_.data());
  if (!status.ok()) return status;
  tokens_ += tokens;
  if (rows_ == 0) return absl::OkStatus();
  const std::vector<float> r = Difference(residual_original, residual_quantized, tokens * rows_);
  if (!AllBelow(r.data(), tokens * rows_, kLargestInput)) return NotFinite();
  for (const float x : r) energy_ += static_cast<double>(x) * x;
  status = linalg::AddCross(r.data(), quantized, tokens, rows_, k_, residual_cross_.data());
  if (!status.ok()) return status;
  return linalg::AddCross(r.data(), d.data(), tokens, rows_, k_, residual_mixed_.data());
}

Drift DriftMoments::drift() const {
  Drift drift{k_, tokens_, Mean(cross_, tokens_), Mean(gram_, tokens_)};
  Symmetrize(drift.gram, k_);
  return drift;
}

ResidualDrift DriftMoments::residual() const {
  const double count = static_cast<double>(tokens_ > 0 ? tokens_ : 1);
  return {
      rows_,          k_, tokens_, Mean(residual_cross_, tokens_), Mean(residual_mixed_, tokens_),
      energy_ / count};
}

void RotateDrift(const Rotation& in, Drift& drift) {
  RotateMetric(in, drift.cross.data(), drift.k);
  RotateMetric(in, drift.gram.data(), drift.k);
}

void RotateDrift(const Rotation& in, ResidualDrift& drift) {
  for (std::vector<double>* moment : {&drift.cross, &drift.mixed}) {
    std::vector<float> rows(moment->begin(), moment->end());
    Rotate(in, rows.data(), drift.n, drift.k);
    moment->assign(rows.begin(), rows.end());
  }
}

}  // namespace babai
