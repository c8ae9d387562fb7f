// Choosing the next token from logits. A seeded request draws the same tokens whatever else is in
// the batch: randomness is a counter-based generator of (seed, position).
//
// With l the model's logits, in this order:
//   1. repetition   for every token of the prompt or the output: l > 0 ? l / r : l * r
//      frequency    l -= frequency_penalty * times generated
//      presence     l -= presence_penalty, if generated at all
//   2. logit bias   l += bias; l is then kept within +-1e30
//   3. temperature  0: the largest l, the lowest id among equals, and nothing of the below.
//                   Otherwise w = exp((l - max l) / temperature)
//   4. top_k        the k tokens of largest l; among equals the lower id comes first
//      top_p        of these, in the same order, the shortest prefix with sum w >= top_p * (sum of
//      all w
//                   that top_k left); never empty
//      min_p        of these, the ones with w >= min_p (the best has w = 1)
//   5. draw         with u in [0, 1) the number of (seed, position), the first token by ascending
//   id at
//                   which the running sum of w exceeds u * (sum of w left)
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace babai {

struct SamplingParams {
  float temperature = 1.0f;                           // [0, 100]; 0 = greedy
  int32_t top_k = 0;                                  // 0 = all
  float top_p = 1.0f;                                 // (0, 1]
  float min_p = 0.0f;                                 // [0, 1]: drop tokens below min_p * p(best)
  float presence_penalty = 0.0f;                      // [-2, 2]
  float frequency_penalty = 0.0f;                     // [-2, 2]
  float repetition_penalty = 1.0f;                    // (0, 10]
  std::vector<std::pair<int32_t, float>> logit_bias;  // biases in [-100, 100], at most 1024
  uint64_t seed = 0;
};

// InvalidArgument naming "sampling.temperature" ...: every number finite and in range.
absl::Status ValidateSampling(const SamplingParams& params, int64_t vocab);

// Philox4x32-10: four random words of a 128-bit counter and a 64-bit key.
// Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> Philox(const std::array<uint32_t, 4>& counter, uint64_t key);

// The number in [0, 1), a multiple of 2^-53, that decides the token at `position`.
double UniformOf(uint64_t seed, int64_t position);

// A token that whoever has the logits chooses in place of Sampler::Pick().
struct TokenChoice {
  bool by_runner = false;  // else it does not
  float temperature = 0;
  double u = 0;       // where temperature > 0
  int32_t token = 0;  // the answer
};

// Sampler of one sequence; keeps counts for the penalties. Reuses its scratch: no allocation a
// token after the first call.
class Sampler {
 public:
  // `logprobs`: last_logprob() will be asked for; it costs a pass over the vocabulary.
  Sampler(const SamplingParams& params, int64_t vocab, bool logprobs = true);
  // Tokens the penalties count. Requires a token in [0, vocab).
  void ObservePrompt(int32_t token);
  void Observe(int32_t token);  // a generated token
  // How a runner may choose the token at `position` itself: by_runner where there are no penalties,
  // biases, filters and log-probabilities, so that steps 3 and 5 are all. Alike for all positions.
  TokenChoice ChoiceAt(int64_t position) const;
  // Picks from logits [vocab] (finite; modified in place) for the token at `position`.
  int32_t Pick(absl::Span<float> logits, int64_t position);
  // log-probability of the token picked last by the model itself: before penalties, bias,
  // temperature and filters.
  float last_logprob() const { return last_logprob_; }

 private:
  struct Seen {
    int32_t token = 0;
    int32_t generated = 0;  // times; 0 = only in the prompt
  };
  bool penalizes() const;
  bool filters() const;
  Seen& SeenEntry(int32_t token);
  void KeepRaw(absl::Span<const float> logits);
  float RawLogit(absl::Span<const float> logits, int32_t token) const;
  void Penalize(absl::Span<float> logits) const;
  int32_t Sample(absl::Span<const float> logits, float best, int64_t position);
  float Weight(float logit, float best) const;
  void SelectBest(absl::Span<const float> logits, size_t count);
  void KeepNucleus(absl::Span<const float> logits, float best, bool selected);
  int32_t Draw(absl::Span<const float> logits, float best, bool all, double u);

  SamplingParams params_;
  int64_t vocab_;
  bool logprobs_;
  std::vector<Seen> seen_;        // distinct tokens, in order of appearance
  std::vector<int32_t> seen_at_;  // [vocab] index into seen_, or -1; empty without penalties
  std::vector<std::pair<int32_t, float>> raw_;  // scratch: logits that penalties changed
  std::vector<int32_t> candidates_;             // scratch: ids the filters kept
  std::vector<double> running_;                 // scratch: running sums of weights
  float last_logprob_ = 0;
};

}  // namespace babai
