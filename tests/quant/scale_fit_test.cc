// Scales are what GPTQ's tools would choose, exactly representable, and the best of those searched.
#include "server/quant/scale_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/formats/float16.h"
#include "server/reason/reason.h"
#include "tests/quant/problem.h"

namespace babai {
namespace {

using testing_quant::MakeProblem;
using testing_quant::Problem;
using testing_quant::ScaleOf;
using testing_quant::ZeroOf;

UniformGrid Fit(const Problem& p, const ScaleFitOptions& options) {
  ThreadPool pool(2);
  auto grid = FitScales(p.w, p.n, p.k, options, pool, nullptr);
  EXPECT_TRUE(grid.ok()) << grid.status();
  return *std::move(grid);
}

double NearestError(const Problem& p, const UniformGrid& g, int64_t row, int64_t column) {
  const double s = ScaleOf(g, row, column), z = ZeroOf(g, row, column), w = p.w[row * p.k + column];
  const double code = std::clamp(std::nearbyint(w / s) + z, 0.0, double(g.max_code()));
  return w - s * (code - z);
}

class ScaleFitTest : public testing::TestWithParam<std::tuple<int, bool>> {};

TEST_P(ScaleFitTest, AbsMaxSpansTheGroup) {
  const auto [bits, symmetric] = GetParam();
  const Problem p = MakeProblem(35, 96, 1, bits);
  const UniformGrid g = Fit(p, {bits, symmetric, 32, ScaleFit::kAbsMax, {}});
  EXPECT_EQ(g.groups(), 3);
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t c0 = 0; c0 < p.k; c0 += 32) {
      const auto [low, high] =
          std::minmax_element(p.w.begin() + r * p.k + c0, p.w.begin() + r * p.k + c0 + 32);
      const float largest = std::max(-std::min(*low, 0.0f), std::max(*high, 0.0f));
      const float range = symmetric ? 2 * largest : std::max(*high, 0.0f) - std::min(*low, 0.0f);
      const float scale = HalfToFloat(FloatToHalf(range / static_cast<float>(g.max_code())));
      EXPECT_EQ(ScaleOf(g, r, c0), scale);
      const float zero =
          symmetric ? (1 << (bits - 1)) : std::nearbyintf(-std::min(*low, 0.0f) / scale);
      EXPECT_EQ(ZeroOf(g, r, c0), zero);
    }
  }
}

// Rounding within the grid costs half a step; the zero point's rounding, the scale's (2^-11 of the
// range) and, symmetric, the level that two's complement lacks, cost at most another half at an
// end.
TEST_P(ScaleFitTest, AbsMaxKeepsEveryWeightWithinOneStep) {
  const auto [bits, symmetric] = GetParam();
  const Problem p = MakeProblem(20, 64, 1, 50 + bits);
  const UniformGrid g = Fit(p, {bits, symmetric, 64, ScaleFit::kAbsMax, {}});
  const double slack = g.max_code() * 0x1p-11;
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t c = 0; c < p.k; ++c)
      EXPECT_LE(std::abs(NearestError(p, g, r, c)), ScaleOf(g, r, c) * (1 + slack));
  }
}

TEST_P(ScaleFitTest, SearchIsNeverWorseThanAbsMax) {
  const auto [bits, symmetric] = GetParam();
  const Problem p = MakeProblem(40, 128, 1, 80 + bits);
  std::vector<double> importance(p.k);
  for (int64_t c = 0; c < p.k; ++c) importance[c] = std::exp(0.1 * (c % 32));
  const UniformGrid plain = Fit(p, {bits, symmetric, 64, ScaleFit::kAbsMax, {}});
  const UniformGrid mse = Fit(p, {bits, symmetric, 64, ScaleFit::kMse, {}});
  const UniformGrid weighted = Fit(p, {bits, symmetric, 64, ScaleFit::kLossWeighted, importance});
  double gained = 0;
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t c0 = 0; c0 < p.k; c0 += 64) {
      double e_plain = 0, e_mse = 0, w_plain = 0, w_mse = 0, w_weighted = 0;
      for (int64_t c = c0; c < c0 + 64; ++c) {
        const auto square = [&](const UniformGrid& g) {
          return std::pow(NearestError(p, g, r, c), 2);
        };
        e_plain += square(plain);
        e_mse += square(mse);
        w_plain += importance[c] * square(plain);
        w_mse += importance[c] * square(mse);
        w_weighted += importance[c] * square(weighted);
      }
      // The search sums in fp32.
      EXPECT_LE(e_mse, e_plain * (1 + 1e-5));
      EXPECT_LE(w_weighted, w_mse * (1 + 1e-5));
      EXPECT_LE(w_weighted, w_plain * (1 + 1e-5));
      gained += e_plain - e_mse;
    }
  }
  // At 8 bits one percent of the range is more than a step: there is little to gain.
  EXPECT_GT(gained, bits < 8 ? 0 : -1e-9);
}

INSTANTIATE_TEST_SUITE_P(Grids, ScaleFitTest,
                         testing::Combine(testing::Values(2, 3, 4, 8), testing::Bool()));

TEST(ScaleFitEdgeTest, ZerosStayZeros) {
  Problem p = MakeProblem(3, 64, 1, 1);
  std::fill_n(p.w.begin() + 64, 32, 0.0f);  // row 1, first group
  for (bool symmetric : {false, true}) {
    for (ScaleFit fit : {ScaleFit::kAbsMax, ScaleFit::kMse}) {
      const UniformGrid g = Fit(p, {4, symmetric, 32, fit, {}});
      EXPECT_EQ(ScaleOf(g, 1, 0), 1.0);
      for (int64_t c = 0; c < 32; ++c) EXPECT_EQ(NearestError(p, g, 1, c), 0.0);
    }
  }
}

// Whatever the magnitude, the stored scale is a positive finite fp16; below fp16's normal range it
// is a multiple of 2^-24, and tiny weights decode to something no further off than that step.
TEST(ScaleFitEdgeTest, TinyWeightsGetRepresentableScales) {
  for (float magnitude : {1e-3f, 1e-4f, 1e-5f, 1e-6f, 1e-8f, 1e-20f, 1e-38f, 1e-44f}) {
    Problem p = MakeProblem(4, 32, 1, 2);
    for (float& w : p.w) w *= magnitude;
    for (bool symmetric : {false, true}) {
      const UniformGrid g = Fit(p, {4, symmetric, 32, ScaleFit::kMse, {}});
      for (int64_t r = 0; r < p.n; ++r) {
        EXPECT_GT(ScaleOf(g, r, 0), 0) << magnitude;
        EXPECT_TRUE(std::isfinite(ScaleOf(g, r, 0)));
        for (int64_t c = 0; c < p.k; ++c) {
          EXPECT_LE(std::abs(NearestError(p, g, r, c)), std::abs(p.w[r * p.k + c]) + 0x1p-24)
              << magnitude;
        }
      }
    }
  }
}

TEST(ScaleFitEdgeTest, RefusesScalesBeyondFp16) {
  ThreadPool pool(1);
  for (float large : {65504.0f * 16, 1e30f, std::numeric_limits<float>::max()}) {
    Problem p = MakeProblem(40, 32, 1, 3);
    p.w[35 * 32 + 7] = large;
    p.w[35 * 32 + 8] = -large;
    for (bool symmetric : {false, true}) {
      const auto grid =
          FitScales(p.w, p.n, p.k, {4, symmetric, 32, ScaleFit::kAbsMax, {}}, pool, nullptr);
      EXPECT_EQ(grid.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_EQ(ReasonOf(grid.status()), reason::kUnsupportedFormat);
    }
  }
}

TEST(ScaleFitEdgeTest, RefusesWeightsThatAreNotFinite) {
  ThreadPool pool(2);
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    Problem p = MakeProblem(40, 32, 1, 4);
    p.w[39 * 32 + 31] = bad;
    const auto grid = FitScales(p.w, p.n, p.k, {4, false, 32, ScaleFit::kMse, {}}, pool, nullptr);
    EXPECT_EQ(grid.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(grid.status()), reason::kNonFiniteWeights);
  }
}

}  // namespace
}  // namespace babai
