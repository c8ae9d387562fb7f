#include "server/engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using testing::ElementsAre;

std::vector<float> RandomLogits(int64_t vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(vocab);
  for (float& l : logits) l = normal(random);
  return logits;
}

// The header's definition, step by step in double, for a sampler without penalties: probability of
// each token.
std::vector<double> Distribution(const std::vector<float>& logits, const SamplingParams& p) {
  const int64_t vocab = logits.size();
  std::vector<int64_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (p.top_k > 0 && p.top_k < vocab) order.resize(p.top_k);
  std::vector<double> w;
  for (int64_t id : order)
    w.push_back(std::exp((double{logits[id]} - logits[order[0]]) / p.temperature));
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  double sum = 0;
  size_t kept = 0;
  while (kept < w.size() && sum < p.top_p * total) sum += w[kept++];
  std::vector<double> probability(vocab, 0);
  double left = 0;
  for (size_t i = 0; i < kept; ++i) left += w[i] >= p.min_p ? w[i] : 0;
  for (size_t i = 0; i < kept; ++i) probability[order[i]] = w[i] >= p.min_p ? w[i] / left : 0;
  return probability;
}

// Random123's known answers for philox4x32-10.
TEST(PhiloxTest, GivesTheKnownAnswers) {
  EXPECT_THAT(Philox({0, 0, 0, 0}, 0),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, ~uint64_t{0}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
}

TEST(SamplerTest, GreedyTakesTheLowestOfEqualIds) {
  SamplingParams params;
  params.temperature = 0;
  Sampler sampler(params, 5);
  std::vector<float> logits = {1, 3, 2, 3, 0};
  EXPECT_EQ(sampler.Pick(absl::MakeSpan(logits), 0), 1);
  const double total = std::exp(1) + 2 * std::exp(3) + std::exp(2) + 1;
  EXPECT_NEAR(sampler.last_logprob(), 3 - std::log(total), 1e-6);
}

struct Filter {
  float temperature;
  int32_t top_k;
  float top_p, min_p;
};
class SamplerDistributionTest : public testing::TestWithParam<Filter> {};

// Chi-squared of the drawn tokens against the definition. With d degrees of freedom its mean is d
// and its variance 2 d: six standard deviations do not happen by chance, and the seeds are fixed.
TEST_P(SamplerDistributionTest, DrawsByTheDefinition) {
  constexpr int64_t kVocab = 300;
  constexpr int kDraws = 40000;
  const std::vector<float> logits = RandomLogits(kVocab, 7);
  SamplingParams params;
  params.temperature = GetParam().temperature;
  params.top_k = GetParam().top_k;
  params.top_p = GetParam().top_p;
  params.min_p = GetParam().min_p;
  params.seed = 99;
  const std::vector<double> want = Distribution(logits, params);

  Sampler sampler(params, kVocab);
  std::vector<int> seen(kVocab, 0);
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> copy = logits;
    ++seen[sampler.Pick(absl::MakeSpan(copy), i)];
  }
  double chi2 = 0, rare_want = 0;
  int degrees = 0, rare_seen = 0;
  for (int64_t id = 0; id < kVocab; ++id) {
    if (want[id] == 0) {
      EXPECT_EQ(seen[id], 0) << "token " << id << " was filtered out";
      continue;
    }
    const double expected = want[id] * kDraws;
    if (expected < 10) {  // too few for chi-squared: pooled
      rare_want += expected;
      rare_seen += seen[id];
      continue;
    }
    chi2 += (seen[id] - expected) * (seen[id] - expected) / expected;
    ++degrees;
  }
  EXPECT_LT(chi2, degrees + 6 * std::sqrt(2.0 * degrees));
  EXPECT_NEAR(rare_seen, rare_want, 6 * std::sqrt(rare_want) + 1);
}

INSTANTIATE_TEST_SUITE_P(
    Filters, SamplerDistributionTest,
    testing::Values(Filter{1, 0, 1, 0},          // no filter: the path without candidates
                    Filter{0.5f, 20, 1, 0},      // top-k alone
                    Filter{1.5f, 0, 0.9f, 0},    // top-p: more than the first 64 candidates
                    Filter{1, 0, 0.3f, 0},       // top-p: few
                    Filter{1, 40, 0.8f, 0.02f},  // all three
                    Filter{1, 0, 1, 0.1f},       // min-p alone
                    Filter{1, 0, 1e-6f, 0},      // the best alone
                    Filter{0.8f, 1000, 1, 0}));  // top-k above the vocabulary

// u is 2^-53-grained and the cumulative sums are compared with it: the same by a plain walk.
TEST(SamplerTest, DrawsTheTokenTheRandomNumberSays) {
  const std::vector<float> logits = RandomLogits(50, 3);
  SamplingParams params;
  params.seed = 12345;
  Sampler sampler(params, 50);
  const std::vector<double> p = Distribution(logits, params);
  for (int64_t position = 0; position < 200; ++position) {
    const double u = UniformOf(params.seed, position);
    double sum = 0;
    int32_t want = 0;
    while ((sum += p[want]) <= u) ++want;
    std::vector<float> copy = logits;
    // Weights are fp32: within 1e-6 of a border either neighbour is right.
    const int32_t got = sampler.Pick(absl::MakeSpan(copy), position);
    if (std::abs(sum - u) > 1e-6 && std::abs(sum - p[want] - u) > 1e-6) {
      EXPECT_EQ(got, want);
    }
  }
}

TEST(SamplerTest, EqualLogitsAtTheEdgeOfTopKGoToLowerIds) {
  SamplingParams params;
  params.top_k = 3;
  Sampler sampler(params, 400);
  std::vector<bool> seen(400, false);
  for (int i = 0; i < 500; ++i) {
    std::vector<float> logits(400, 1.0f);
    seen[sampler.Pick(absl::MakeSpan(logits), i)] = true;
  }
  EXPECT_THAT(std::count(seen.begin(), seen.end(), true), 3);
  EXPECT_TRUE(seen[0] && seen[1] && seen[2]);
}

TEST(SamplerTest, PenaltiesFollowTheDefinition) {
  SamplingParams params;
  params.temperature = 0;
  params.repetition_penalty = 2;
  params.frequency_penalty = 0.5f;
  params.presence_penalty = 0.25f;
  params.logit_bias = {{3, 1.5f}};
  Sampler sampler(params, 4);
  sampler.ObservePrompt(0);
  sampler.ObservePrompt(1);
  sampler.Observe(1);
  sampler.Observe(1);
  std::vector<float> logits = {4, 4, -1, 0};
  sampler.Pick(absl::MakeSpan(logits), 0);
  EXPECT_FLOAT_EQ(logits[0], 2);                     // in the prompt only
  EXPECT_FLOAT_EQ(logits[1], 2 - 2 * 0.5f - 0.25f);  // generated twice
  EXPECT_FLOAT_EQ(logits[2], -1);
  EXPECT_FLOAT_EQ(logits[3], 1.5f);
  // Its own probability, before all that.
  const double total = 2 * std::exp(4) + std::exp(-1) + 1;
  EXPECT_NEAR(sampler.last_logprob(), 4 - std::log(total), 1e-6);
}

TEST(SamplerTest, TinyPenaltyMakesNoInfinity) {
  SamplingParams params;
  params.repetition_penalty = std::numeric_limits<float>::denorm_min();
  Sampler sampler(params, 3);
  sampler.Observe(1);
  std::vector<float> logits = {0, 5, 0};
  EXPECT_EQ(sampler.Pick(absl::MakeSpan(logits), 0), 1);
}

TEST(ValidateSamplingTest, NamesTheField) {
  const auto field = [](auto set) {
    SamplingParams params;
    set(params);
    return FieldOf(ValidateSampling(params, 100));
  };
  EXPECT_TRUE(ValidateSampling(SamplingParams(), 100).ok());
  EXPECT_EQ(field([](auto& p) { p.temperature = std::nanf(""); }), "sampling.temperature");
  EXPECT_EQ(field([](auto& p) { p.temperature = -1; }), "sampling.temperature");
  EXPECT_EQ(field([](auto& p) { p.top_p = 0; }), "sampling.top_p");
  EXPECT_EQ(field([](auto& p) { p.top_p = INFINITY; }), "sampling.top_p");
  EXPECT_EQ(field([](auto& p) { p.min_p = 1.01f; }), "sampling.min_p");
  EXPECT_EQ(field([](auto& p) { p.top_k = -1; }), "sampling.top_k");
  EXPECT_EQ(field([](auto& p) { p.repetition_penalty = 0; }), "sampling.repetition_penalty");
  EXPECT_EQ(field([](auto& p) { p.presence_penalty = 3; }), "sampling.presence_penalty");
  EXPECT_EQ(field([](auto& p) { p.frequency_penalty = -3; }), "sampling.frequency_penalty");
  EXPECT_EQ(field([](auto& p) { p.logit_bias = {{100, 0}}; }), "sampling.logit_bias");
  EXPECT_EQ(field([](auto& p) { p.logit_bias = {{1, std::nanf("")}}; }), "sampling.logit_bias");
}

TEST(SamplerTest, RunnersChooseWhatNeedsNoMoreThanATemperature) {
  constexpr int64_t kVocab = 50;
  const auto choice = [](const SamplingParams& p, bool logprobs = false) {
    return Sampler(p, kVocab, logprobs).ChoiceAt(7);
  };
  SamplingParams plain;
  plain.temperature = 0.7f, plain.seed = 11, plain.top_k = kVocab;
  EXPECT_TRUE(choice(plain).by_runner);
  EXPECT_EQ(choice(plain).temperature, 0.7f);
  EXPECT_EQ(choice(plain).u, UniformOf(11, 7));
  EXPECT_FALSE(choice(plain, /*logprobs=*/true).by_runner);
  const auto changed = [&](auto change) {
    SamplingParams p = plain;
    change(p);
    return choice(p).by_runner;
  };
  EXPECT_FALSE(changed([](SamplingParams& p) { p.top_k = 5; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.top_p = 0.9f; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.min_p = 0.1f; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.presence_penalty = 1; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.frequency_penalty = 1; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.repetition_penalty = 2; }));
  EXPECT_FALSE(changed([](SamplingParams& p) { p.logit_bias = {{1, 1.0f}}; }));
  EXPECT_TRUE(changed([](SamplingParams& p) { p.temperature = 0, p.top_k = 5, p.top_p = 0.5f; }));
}

}  // namespace
}  // namespace babai
