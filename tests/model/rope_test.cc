#include "server/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace babai {
namespace {

using Kind = RopeRule::Kind;

RopeRule Rule(Kind kind) {
  RopeRule rule;
  rule.kind = kind;
  rule.rotary_dim = 64;
  rule.theta = 500000;
  rule.factor = 8;
  rule.original_positions = 8192;
  rule.max_positions = 65536;
  return rule;
}

double Base(int i) { return std::pow(500000.0, -2.0 * i / 64); }

// The rules in doubles. fp32 takes at most a handful of roundings to get there.
void ExpectFrequencies(const RopeRule& rule, double (*expected)(int)) {
  const Rope rope = MakeRope(rule);
  ASSERT_EQ(rope.inv_freq.size(), 32u);
  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(rope.inv_freq[i], expected(i), 8 * 0x1p-24 * expected(i)) << "pair " << i;
  }
}

TEST(Rope, Default) { ExpectFrequencies(Rule(Kind::kDefault), Base); }
TEST(Rope, DynamicIsTheBase) { ExpectFrequencies(Rule(Kind::kDynamic), Base); }

TEST(Rope, LinearDividesByTheFactor) {
  ExpectFrequencies(Rule(Kind::kLinear), [](int i) { return Base(i) / 8; });
}

TEST(Rope, Llama3KeepsShortWavesAndSlowsLongOnes) {
  ExpectFrequencies(Rule(Kind::kLlama3), [](int i) {
    const double wave = 2 * std::numbers::pi / Base(i);
    if (wave < 8192 / 4.0) return Base(i);
    if (wave > 8192) return Base(i) / 8;
    const double keep = (8192 / wave - 1) / 3;
    return (1 - keep) * Base(i) / 8 + keep * Base(i);
  });
  EXPECT_EQ(MakeRope(Rule(Kind::kLlama3)).attention_scale, 1);
}

TEST(Rope, YarnRampsBetweenItsTwoRotations) {
  ExpectFrequencies(Rule(Kind::kYarn), [](int i) {
    const auto dimension = [](double turns) {
      return 64 * std::log(8192 / (turns * 2 * std::numbers::pi)) / (2 * std::log(500000.0));
    };
    const double low = std::floor(dimension(32)), high = std::ceil(dimension(1));
    const double slow = std::min(1.0, std::max(0.0, (i - low) / (high - low)));
    return slow * Base(i) / 8 + (1 - slow) * Base(i);
  });
  EXPECT_FLOAT_EQ(MakeRope(Rule(Kind::kYarn)).attention_scale, 0.1 * std::log(8.0) + 1);
  RopeRule given = Rule(Kind::kYarn);
  given.attention_factor = 1.5;
  EXPECT_EQ(MakeRope(given).attention_scale, 1.5f);
  RopeRule ratio = Rule(Kind::kYarn);
  ratio.mscale = 1, ratio.mscale_all_dim = 1;
  EXPECT_EQ(MakeRope(ratio).attention_scale, 1.0f);
}

TEST(Rope, LongRopeTakesTheFactorsOfTheContextServed) {
  RopeRule rule = Rule(Kind::kLongRope);
  rule.short_factor.assign(32, 2);
  rule.long_factor.assign(32, 4);
  ExpectFrequencies(rule, [](int i) { return Base(i) / 4; });
  EXPECT_FLOAT_EQ(MakeRope(rule).attention_scale, std::sqrt(1 + std::log(8.0) / std::log(8192.0)));
  rule.max_positions = 8192;
  ExpectFrequencies(rule, [](int i) { return Base(i) / 2; });
  EXPECT_EQ(MakeRope(rule).attention_scale, 1);
}

}  // namespace
}  // namespace babai
