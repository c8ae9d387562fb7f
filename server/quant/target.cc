#include "server/quant/target.h"

#include <algorithm>

#include "server/quant/linalg.h"

namespace babai {
namespace {

std::vector<float> ToFloat(const std::vector<double>& v) { return {v.begin(), v.end()}; }

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// w m for a square m [k, k].
absl::StatusOr<std::vector<float>> Times(const std::vector<float>& w, const std::vector<double>& m,
                                         int64_t n, int64_t k) {
  std::vector<float> out(w.size());
  const std::vector<float> right = ToFloat(m);
  const absl::Status done = linalg::Multiply(w.data(), right.data(), out.data(), n, k, k);
  if (!done.ok()) return done;
  return out;
}

// j [n, k] H^-1, with H as it was damped and factored.
absl::StatusOr<std::vector<float>> TimesInverse(const std::vector<float>& j, int64_t n,
                                                const Factor& f) {
  std::vector<double> sweep(j.size());
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t p = 0; p < f.k; ++p) sweep[r * f.k + p] = j[r * f.k + f.order[p]];
  }
  const absl::Status done = linalg::SolveRight(f.l.data(), f.k, sweep.data(), n);
  if (!done.ok()) return done;
  std::vector<float> out(j.size());
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t p = 0; p < f.k; ++p)
      out[r * f.k + f.order[p]] = static_cast<float>(sweep[r * f.k + p]);
  }
  return out;
}

// E |W (x - y) + r - r~|^2: all of the drift, expressible or not.
absl::StatusOr<double> DriftEnergy(const std::vector<float>& w, int64_t n, const Drift& drift,
                                   const ResidualDrift* residual) {
  const auto we = Times(w, drift.gram, n, drift.k);
  if (!we.ok()) return we.status();
  const double inputs = Dot(*we, w);
  if (residual == nullptr) return inputs;
  return inputs + 2 * Dot(ToFloat(residual->mixed), w) + residual->energy;
}

// What is to be expressed, E[(W (x - y) + r - r~) y'], by one half of the tokens.
absl::StatusOr<std::vector<float>> Expressed(const std::vector<float>& w, int64_t n, int64_t k,
                                             const std::vector<double>& cross,
                                             const std::vector<double>* residual) {
  auto expressed = Times(w, cross, n, k);
  if (!expressed.ok() || residual == nullptr) return expressed;
  for (size_t i = 0; i < expressed->size(); ++i)
    (*expressed)[i] += static_cast<float>((*residual)[i]);
  return expressed;
}

// a first + (1 - a) second.
std::vector<float> Mixed(const std::vector<float>& first, const std::vector<float>& second,
                         double a) {
  std::vector<float> out(first.size());
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(a * first[i] + (1 - a) * second[i]);
  return out;
}

double Share(double part, double whole) {
  return whole > 0 ? std::clamp(part / whole, 0.0, 1.0) : 0.0;
}

}  // namespace

absl::StatusOr<CorrectedTarget> CorrectTarget(std::vector<float> w, int64_t n, const Factor& factor,
                                              const Drift& drift, const ResidualDrift* residual,
                                              Target rule, double alpha) {
  const auto first = Expressed(w, n, drift.k, drift.cross.first,
                               residual == nullptr ? nullptr : &residual->cross.first);
  const auto second = Expressed(w, n, drift.k, drift.cross.second,
                                residual == nullptr ? nullptr : &residual->cross.second);
  for (const auto* half : {&first, &second}) {
    if (!half->ok()) return half->status();
  }
  const std::vector<float> expressed = Mixed(*first, *second, drift.cross.first_share);
  const auto correction = TimesInverse(expressed, n, factor);
  if (!correction.ok()) return correction.status();
  if (rule == Target::kClosedForm) {
    const auto energy = DriftEnergy(w, n, drift, residual);
    if (!energy.ok()) return energy.status();
    alpha = Share(Dot(*correction, expressed), *energy);
  } else if (rule == Target::kCrossValidated) {
    const auto learnt = TimesInverse(*first, n, factor);
    if (!learnt.ok()) return learnt.status();
    alpha = Share(Dot(*learnt, *second), Dot(*correction, expressed));
  }
  for (size_t i = 0; i < w.size(); ++i) w[i] += static_cast<float>(alpha) * (*correction)[i];
  return CorrectedTarget{std::move(w), alpha};
}

}  // namespace babai
