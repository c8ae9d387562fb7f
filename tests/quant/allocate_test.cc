// Sharing out bits: the target is met, no exchange of two steps is better, curves in between are
// right.
#include "server/quant/allocate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "server/reason/reason.h"

namespace babai {
namespace {

double Total(const std::vector<RateCurve>& curves, const std::vector<size_t>& chosen, bool bits) {
  double sum = 0;
  for (size_t i = 0; i < curves.size(); ++i) {
    sum += bits ? curves[i].bits[chosen[i]] * static_cast<double>(curves[i].weights)
                : curves[i].costs[chosen[i]];
  }
  return sum;
}

// The best choice there is, by trying all.
double LeastCost(const std::vector<RateCurve>& curves, double budget) {
  double best = HUGE_VAL;
  std::vector<size_t> chosen(curves.size(), 0);
  for (;;) {
    if (Total(curves, chosen, true) <= budget + 1e-9)
      best = std::min(best, Total(curves, chosen, false));
    size_t i = 0;
    while (i < chosen.size() && ++chosen[i] == curves[i].bits.size()) chosen[i++] = 0;
    if (i == chosen.size()) return best;
  }
}

TEST(AllocateTest, IsNearTheBestOfAllChoices) {
  std::mt19937_64 rng(1);
  std::uniform_real_distribution<double> uniform(0.1, 10);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<RateCurve> curves(6);
    for (RateCurve& c : curves) {
      c.weights = 100 + static_cast<int64_t>(rng() % 100);
      c.bits = {2.25, 3.25, 4.25, 8.25};
      const double scale = uniform(rng);
      for (const double b : c.bits) c.costs.push_back(scale * std::exp2(-2 * b));
    }
    const double target = 3 + 0.1 * trial;
    const auto chosen = AllocateBits(curves, target);
    ASSERT_TRUE(chosen.ok()) << chosen.status();
    double weights = 0, cheapest = 0;
    for (const RateCurve& c : curves) {
      weights += static_cast<double>(c.weights);
      cheapest += c.costs[0];
    }
    EXPECT_LE(Total(curves, *chosen, true), target * weights + 1e-9);
    const double best = LeastCost(curves, target * weights);
    // What a budget can not divide is at most one step of one linear.
    EXPECT_LE(Total(curves, *chosen, false), best + 0.25 * (cheapest - best));
    const std::vector<size_t> equal(curves.size(), target >= 4.25 ? 2 : target >= 3.25 ? 1 : 0);
    EXPECT_LE(Total(curves, *chosen, false), Total(curves, equal, false) + 1e-12);
  }
}

TEST(AllocateTest, PointsAboveTheHullAreNeverTaken) {
  const std::vector<RateCurve> curves = {{10, {2, 3, 4}, {8, 7.9, 1}}};
  EXPECT_EQ(AllocateBits(curves, 3.5)->front(), 0u);
  EXPECT_EQ(AllocateBits(curves, 4)->front(), 2u);
}

TEST(AllocateTest, RefusesWhatCanNotBeMet) {
  const std::vector<RateCurve> curves = {{10, {2.25, 3.25}, {2, 1}}};
  EXPECT_EQ(FieldOf(AllocateBits(curves, 2).status()), "recipe.target_bits");
}

TEST(AllocateTest, RefinesALogLinearCurveExactly) {
  RateCurve coarse = {7, {2, 3, 5}, {}};
  for (const double b : coarse.bits) coarse.costs.push_back(3 * std::exp2(-2 * b));
  const RateCurve fine = Refine(coarse, 1, 6, 0.25);
  ASSERT_EQ(fine.bits.size(), 21u);
  EXPECT_EQ(fine.weights, 7);
  for (size_t i = 0; i < fine.bits.size(); ++i)
    EXPECT_NEAR(fine.costs[i] / (3 * std::exp2(-2 * fine.bits[i])), 1, 1e-12);
}

}  // namespace
}  // namespace babai
