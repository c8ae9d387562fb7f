// Choosing the next token from logits. A seeded request draws the same tokens whatever else is in the
// batch: randomness is a counter-based generator of (seed, position).
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace babai {

struct SamplingParams {
  float temperature = 1.0f;       // 0 = greedy
  int32_t top_k = 0;              // 0 = all
  float top_p = 1.0f;             // (0, 1]
  float min_p = 0.0f;             // [0, 1]: drop tokens below min_p * p(best)
  float presence_penalty = 0.0f;  // [-2, 2]
  float frequency_penalty = 0.0f; // [-2, 2]
  float repetition_penalty = 1.0f;// (0, 10]
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;
};

// InvalidArgument naming "sampling.temperature" ...: every number finite and in range.
absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab);

// Sampler of one sequence; keeps counts for the penalties. Reuses its scratch: no allocation a token
// after the first call.
class Sampler {
 public:
  Sampler(const SamplingParams& params, int64_t vocab);
  void Observe(int32_t token);  // a prompt or generated token
  // Picks from logits [vocab] (modified in place) for the token at `position`.
  int32_t Pick(absl::Span<float> logits, int64_t position);
  // log-probability of the token picked last, before temperature and filters.
  float last_logprob() const { return last_logprob_; }

 private:
  SamplingParams params_;
  std::vector<uint16_t> counts_;
  std::vector<int32_t> candidates_;
  float last_logprob_ = 0;
};

}  // namespace babai
