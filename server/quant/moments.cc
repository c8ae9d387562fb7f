#include "server/quant/moments.h"

#include <algorithm>
#include <string>

#include "absl/functional/function_ref.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The sum of TokenPanels::kMostTokens squares below this still fits in fp32.
constexpr float kLargestInput = 1e17f;

absl::Status NotFinite() {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "",
                "an input of the layer is not a number, infinite or above 1e17 on the calibration "
                "data: the model overflows on it; use other data or a wider dense type");
}

// Fills `panels`, and refuses what products of them could not hold.
absl::Status FillChecked(cpu::TokenPanels& panels, const float* x, const float* minus,
                         int64_t tokens, int64_t width, ThreadPool& pool) {
  if (auto status = panels.Fill(x, minus, tokens, width, pool); !status.ok()) {
    return Refuse(status.code(), reason::kOutOfMemory, "", std::string(status.message()));
  }
  return panels.AllBelow(kLargestInput, pool) ? absl::OkStatus() : NotFinite();
}

// Calls add(first, count) on parts of `tokens` that products can take.
absl::Status ForEachPart(int64_t tokens, absl::FunctionRef<absl::Status(int64_t, int64_t)> add) {
  for (int64_t first = 0; first < tokens; first += cpu::TokenPanels::kMostTokens) {
    const int64_t count = std::min(cpu::TokenPanels::kMostTokens, tokens - first);
    if (auto status = add(first, count); !status.ok()) return status;
  }
  return absl::OkStatus();
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

}  // namespace

Moments::Moments(int64_t k, ThreadPool& pool)
    : k_(k), pool_(pool), gram_(static_cast<size_t>(k) * k, 0.0) {}

absl::Status Moments::Add(const float* x, int64_t tokens) {
  return ForEachPart(tokens, [&](int64_t first, int64_t count) -> absl::Status {
    auto status = FillChecked(panels_, x + first * k_, nullptr, count, k_, pool_);
    if (!status.ok()) return status;
    cpu::AddGram(panels_, gram_.data(), pool_);
    tokens_ += count;
    return absl::OkStatus();
  });
}

std::vector<double> Moments::Hessian() const {
  std::vector<double> h = Mean(gram_, tokens_);
  Symmetrize(h, k_);
  return h;
}

DriftMoments::DriftMoments(int64_t k, int64_t rows, int64_t first_half, bool energy,
                           ThreadPool& pool)
    : k_(k), rows_(rows), first_half_(first_half), energy_wanted_(energy), pool_(pool) {
  for (const int half : {0, 1}) {
    cross_[half].resize(k * k);
    residual_cross_[half].resize(rows * k);
  }
  if (!energy) return;
  gram_.resize(k * k);
  residual_mixed_.resize(rows * k);
}

absl::Status DriftMoments::Add(const float* quantized, const float* original,
                               const float* residual_quantized, const float* residual_original,
                               int64_t tokens) {
  const int64_t of_first = std::clamp<int64_t>(first_half_ - tokens_[0], 0, tokens);
  for (const int half : {0, 1}) {
    const int64_t begin = half * of_first, count = half == 0 ? of_first : tokens - of_first;
    const auto status = ForEachPart(count, [&](int64_t first, int64_t part) {
      const int64_t at = begin + first;
      return AddPart(half, quantized + at * k_, original + at * k_, residual_quantized + at * rows_,
                     residual_original + at * rows_, part);
    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status DriftMoments::AddPart(int half, const float* quantized, const float* original,
                                   const float* residual_quantized, const float* residual_original,
                                   int64_t tokens) {
  auto status = FillChecked(inputs_, quantized, nullptr, tokens, k_, pool_);
  if (status.ok()) status = FillChecked(drift_, original, quantized, tokens, k_, pool_);
  if (status.ok() && rows_ > 0) {
    status = FillChecked(residual_, residual_original, residual_quantized, tokens, rows_, pool_);
  }
  if (!status.ok()) return status;
  tokens_[half] += tokens;
  cpu::AddProducts(drift_, inputs_, cross_[half].data(), pool_);
  if (rows_ > 0) cpu::AddProducts(residual_, inputs_, residual_cross_[half].data(), pool_);
  if (!energy_wanted_) return absl::OkStatus();
  cpu::AddGram(drift_, gram_.data(), pool_);
  if (rows_ == 0) return absl::OkStatus();
  cpu::AddProducts(residual_, drift_, residual_mixed_.data(), pool_);
  for (int64_t i = 0; i < tokens * rows_; ++i) {
    const double r = static_cast<double>(residual_original[i]) - residual_quantized[i];
    energy_ += r * r;
  }
  return absl::OkStatus();
}

Halves DriftMoments::MeanHalves(const std::vector<double> (&sums)[2]) const {
  const double share =
      tokens() > 0 ? static_cast<double>(tokens_[0]) / static_cast<double>(tokens()) : 0;
  return {Mean(sums[0], tokens_[0]), Mean(sums[1], tokens_[1]), share};
}

Drift DriftMoments::drift() const {
  Drift drift{k_, tokens(), MeanHalves(cross_), Mean(gram_, tokens())};
  if (energy_wanted_) Symmetrize(drift.gram, k_);
  return drift;
}

ResidualDrift DriftMoments::residual() const {
  const double count = static_cast<double>(std::max<int64_t>(1, tokens()));
  return {
      rows_,          k_, tokens(), MeanHalves(residual_cross_), Mean(residual_mixed_, tokens()),
      energy_ / count};
}

void RotateDrift(const Rotation& in, Drift& drift) {
  for (std::vector<double>* moment : {&drift.cross.first, &drift.cross.second, &drift.gram}) {
    if (!moment->empty()) RotateMetric(in, moment->data(), drift.k);
  }
}

void RotateDrift(const Rotation& in, ResidualDrift& drift) {
  for (std::vector<double>* moment : {&drift.cross.first, &drift.cross.second, &drift.mixed}) {
    if (moment->empty()) continue;
    std::vector<float> rows(moment->begin(), moment->end());
    Rotate(in, rows.data(), drift.n, drift.k);
    moment->assign(rows.begin(), rows.end());
  }
}

}  // namespace babai
