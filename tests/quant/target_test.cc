#include "server/quant/target.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "server/quant/factor.h"

namespace babai {
namespace {

constexpr int64_t kInputs = 48, kOutputs = 20;

// Inputs y of a quantized layer and x = y + 0.2 B y + noise of the original one.
struct Sample {
  std::vector<float> y, x;
};

class TargetTest : public testing::Test {
 protected:
  TargetTest() : w_(Normal(kOutputs * kInputs, 1, 0.1f)), map_(Normal(kInputs * kInputs, 2, 1)) {}

  static std::vector<float> Normal(int64_t count, uint32_t seed, float deviation) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> out(count);
    for (float& v : out) v = normal(rng);
    return out;
  }

  Sample Draw(int64_t tokens, uint32_t seed) const {
    Sample s = {Normal(tokens * kInputs, seed, 1), Normal(tokens * kInputs, seed + 1, 1)};
    for (int64_t t = 0; t < tokens; ++t) {
      const float* y = s.y.data() + t * kInputs;
      for (int64_t r = 0; r < kInputs; ++r) {
        float moved = 0;
        for (int64_t c = 0; c < kInputs; ++c) moved += map_[r * kInputs + c] * y[c];
        s.x[t * kInputs + r] += y[r] + 0.2f / 7 * moved;  // 7: about the norm of a row
      }
    }
    return s;
  }

  CorrectedTarget Correct(const Sample& s, Target rule, double alpha) {
    const auto tokens = static_cast<int64_t>(s.y.size()) / kInputs;
    Moments moments(kInputs, pool_);
    EXPECT_TRUE(moments.Add(s.y.data(), tokens).ok());
    DriftMoments drift(kInputs, 0, tokens / 2, rule == Target::kClosedForm, pool_);
    EXPECT_TRUE(drift.Add(s.y.data(), s.x.data(), nullptr, nullptr, tokens).ok());
    const Factor factor = *FactorHessian(moments.Hessian(), Order::kNatural, 1e-4);
    return *CorrectTarget(w_, kOutputs, factor, drift.drift(), nullptr, rule, alpha);
  }

  // E |W x - W* y|^2 on tokens of their own.
  double Loss(const std::vector<float>& target) const {
    const Sample s = Draw(4000, 1000);
    double loss = 0;
    for (int64_t t = 0; t < 4000; ++t) {
      for (int64_t r = 0; r < kOutputs; ++r) {
        double e = 0;
        for (int64_t c = 0; c < kInputs; ++c) {
          const int64_t i = r * kInputs + c, j = t * kInputs + c;
          e += double{w_[i]} * s.x[j] - double{target[i]} * s.y[j];
        }
        loss += e * e / 4000;
      }
    }
    return loss;
  }

  std::vector<float> w_, map_;
  ThreadPool pool_{2};
};

// With few tokens most of the correction is noise, with many nearly all of it is true: on other
// tokens the share found is never worse than none or all, up to the noise of the share itself.
TEST_F(TargetTest, CrossValidationTakesWhatHoldsOnOtherTokens) {
  std::vector<double> shares;
  for (int64_t tokens : {100, 400, 2000, 20000}) {
    const Sample s = Draw(tokens, 10);
    const CorrectedTarget found = Correct(s, Target::kCrossValidated, 0);
    const double loss = Loss(found.w);
    EXPECT_LE(loss, 1.01 * Loss(w_)) << tokens << " tokens";
    EXPECT_LE(loss, 1.01 * Loss(Correct(s, Target::kFixed, 1).w)) << tokens << " tokens";
    shares.push_back(found.alpha);
  }
  EXPECT_LT(shares.front(), 0.3);
  EXPECT_GT(shares.back(), 0.9);
}

// The closed form stays at the share of the error that is expressible, however much data there is.
TEST_F(TargetTest, ClosedFormIsTheExpressibleShare) {
  const double alpha = Correct(Draw(20000, 10), Target::kClosedForm, 0).alpha;
  EXPECT_NEAR(alpha, 0.04 / 1.04, 0.01);
}

}  // namespace
}  // namespace babai
