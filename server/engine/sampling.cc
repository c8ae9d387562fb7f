#include "server/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/row_ops.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr float kLogitLimit = 1e30f;  // penalties and biases can not make an infinity
constexpr size_t kMaxBiases = 1024;

struct Range {
  const char* field;
  float value, low, high;
  bool low_excluded;
};

absl::Status CheckRange(const Range& r) {
  const bool above = r.low_excluded ? r.value > r.low : r.value >= r.low;
  if (above && r.value <= r.high) return absl::OkStatus();  // false for a NaN
  return InvalidField(r.field, absl::StrCat("must be in ", r.low_excluded ? "(" : "[", r.low, ", ",
                                            r.high, "], got ", r.value));
}

absl::Status CheckBias(const std::pair<int32_t, float>& bias, int64_t vocab) {
  if (bias.first < 0 || bias.first >= vocab) {
    return InvalidField("sampling.logit_bias",
                        absl::StrCat("token ", bias.first, " is not in [0, ", vocab, ")"));
  }
  return CheckRange({"sampling.logit_bias", bias.second, -100, 100, false});
}

}  // namespace

absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab) {
  const Range ranges[] = {
      {"sampling.temperature", params.temperature, 0, 100, false},
      {"sampling.top_p", params.top_p, 0, 1, true},
      {"sampling.min_p", params.min_p, 0, 1, false},
      {"sampling.presence_penalty", params.presence_penalty, -2, 2, false},
      {"sampling.frequency_penalty", params.frequency_penalty, -2, 2, false},
      {"sampling.repetition_penalty", params.repetition_penalty, 0, 10, true},
  };
  for (const Range& range : ranges) {
    if (absl::Status status = CheckRange(range); !status.ok()) return status;
  }
  if (params.top_k < 0) {
    return InvalidField("sampling.top_k", absl::StrCat("must be at least 0, got ", params.top_k));
  }
  if (params.logit_bias.size() > kMaxBiases) {
    return InvalidField("sampling.logit_bias", absl::StrCat("holds ", params.logit_bias.size(),
                                                            " tokens, at most ", kMaxBiases));
  }
  for (const auto& bias : params.logit_bias) {
    if (absl::Status status = CheckBias(bias, vocab); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::array<uint32_t, 4> Philox(const std::array<uint32_t, 4>& counter, uint64_t key) {
  std::array<uint32_t, 4> c = counter;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

double UniformOf(uint64_t seed, int64_t position) {
  const uint64_t p = position;
  const std::array<uint32_t, 4> r =
      Philox({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0}, seed);
  const uint64_t bits = (uint64_t{r[1]} << 32 | r[0]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

Sampler::Sampler(const SamplingParams& params, int64_t vocab, bool logprobs)
    : params_(params), vocab_(vocab), logprobs_(logprobs) {
  if (penalizes()) seen_at_.assign(vocab, -1);
}

bool Sampler::penalizes() const {
  return params_.presence_penalty != 0 || params_.frequency_penalty != 0 ||
         params_.repetition_penalty != 1;
}

bool Sampler::filters() const {
  const bool by_k = params_.top_k > 0 && params_.top_k < vocab_;
  return params_.temperature != 0 && (by_k || params_.top_p < 1 || params_.min_p > 0);
}

TokenChoice Sampler::ChoiceAt(int64_t position) const {
  TokenChoice choice;
  choice.by_runner = !logprobs_ && !penalizes() && !filters() && params_.logit_bias.empty();
  choice.temperature = params_.temperature;
  if (choice.by_runner && params_.temperature != 0) choice.u = UniformOf(params_.seed, position);
  return choice;
}

Sampler::Seen& Sampler::SeenEntry(int32_t token) {
  int32_t& at = seen_at_[token];
  if (at < 0) {
    at = seen_.size();
    seen_.push_back({token, 0});
  }
  return seen_[at];
}

void Sampler::ObservePrompt(int32_t token) {
  if (penalizes()) SeenEntry(token);
}

void Sampler::Observe(int32_t token) {
  if (penalizes()) ++SeenEntry(token).generated;
}

// Remembers what the model said about every token that is about to change.
void Sampler::KeepRaw(absl::Span<const float> logits) {
  raw_.clear();
  for (const Seen& seen : seen_) raw_.emplace_back(seen.token, logits[seen.token]);
  for (const auto& [token, bias] : params_.logit_bias) raw_.emplace_back(token, logits[token]);
}

float Sampler::RawLogit(absl::Span<const float> logits, int32_t token) const {
  for (const auto& [changed, logit] : raw_) {
    if (changed == token) return logit;
  }
  return logits[token];
}

void Sampler::Penalize(absl::Span<float> logits) const {
  const float r = params_.repetition_penalty;
  for (const Seen& seen : seen_) {
    float& l = logits[seen.token];
    l = l > 0 ? l / r : l * r;
    if (seen.generated == 0) continue;
    l -= params_.frequency_penalty * static_cast<float>(seen.generated) + params_.presence_penalty;
  }
  for (const auto& [token, bias] : params_.logit_bias) logits[token] += bias;
  for (const auto& [token, raw] : raw_) {
    logits[token] = std::clamp(logits[token], -kLogitLimit, kLogitLimit);
  }
}

int32_t Sampler::Pick(absl::Span<float> logits, int64_t position) {
  const double log_total = logprobs_ ? cpu::LogSumExp(logits.data(), logits.size()) : 0;
  KeepRaw(logits);
  Penalize(logits);
  const int32_t best = cpu::ArgMax(logits.data(), logits.size());
  const int32_t token = params_.temperature == 0 ? best : Sample(logits, logits[best], position);
  if (logprobs_) last_logprob_ = static_cast<float>(RawLogit(logits, token) - log_total);
  return token;
}

int32_t Sampler::Sample(absl::Span<const float> logits, float best, int64_t position) {
  const size_t vocab = logits.size();
  const bool by_k = params_.top_k > 0 && static_cast<size_t>(params_.top_k) < vocab;
  if (by_k) SelectBest(logits, params_.top_k);
  if (params_.top_p < 1) KeepNucleus(logits, best, by_k);
  const bool all = !by_k && params_.top_p >= 1;
  if (!all) std::sort(candidates_.begin(), candidates_.end());
  return Draw(logits, best, all, UniformOf(params_.seed, position));
}

float Sampler::Weight(float logit, float best) const {
  return std::exp((logit - best) / params_.temperature);
}

// candidates_ = the `count` best ids, best first. Ids come in ascending order, so one that only
// equals the worst kept so far loses to it.
void Sampler::SelectBest(absl::Span<const float> logits, size_t count) {
  const auto better = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  count = std::min(count, logits.size());
  candidates_.clear();
  float worst = -std::numeric_limits<float>::infinity();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] <= worst) continue;
    candidates_.push_back(id);
    if (candidates_.size() < 2 * count) continue;
    std::nth_element(candidates_.begin(), candidates_.begin() + (count - 1), candidates_.end(),
                     better);
    candidates_.resize(count);
    worst = logits[candidates_.back()];
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
  if (candidates_.size() > count) candidates_.resize(count);
}

// Cuts the candidates, best first, to the shortest prefix that holds top_p of the weight; without
// candidates it takes ever longer lists of the best until one holds it.
void Sampler::KeepNucleus(absl::Span<const float> logits, float best, bool selected) {
  double total = 0;
  if (selected) {
    for (int32_t id : candidates_) total += Weight(logits[id], best);
  } else {
    for (float logit : logits) total += Weight(logit, best);
  }
  const double wanted = params_.top_p * total;
  for (size_t count = 64;; count *= 8) {
    if (!selected) SelectBest(logits, count);
    double sum = 0;
    for (size_t i = 0; i < candidates_.size(); ++i) {
      sum += Weight(logits[candidates_[i]], best);
      if (sum < wanted) continue;
      candidates_.resize(i + 1);
      return;
    }
    if (selected || count >= logits.size()) return;
  }
}

int32_t Sampler::Draw(absl::Span<const float> logits, float best, bool all, double u) {
  const size_t count = all ? logits.size() : candidates_.size();
  running_.clear();
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const float w = Weight(logits[all ? i : candidates_[i]], best);
    if (w >= params_.min_p) sum += w;
    running_.push_back(sum);
  }
  auto at = std::upper_bound(running_.begin(), running_.end(), u * sum);
  // u < 1, but u * sum may round up to sum: then the last token with a weight.
  if (at == running_.end()) at = std::lower_bound(running_.begin(), running_.end(), sum);
  const size_t i = at - running_.begin();
  return all ? static_cast<int32_t>(i) : candidates_[i];
}

}  // namespace babai
