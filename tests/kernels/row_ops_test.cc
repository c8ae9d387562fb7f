#include "kernels/cpu/row_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

constexpr int64_t kWidths[] = {1, 7, 16, 33, 64, 576};

// Sums of n squares in fp32 are off by at most n * eps, relative; the root halves that; a few
// roundings follow.
TEST(RmsNormTest, EqualsItsDefinitionUpToRounding) {
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (int64_t k : kWidths) {
      const int64_t m = 3, ld = k + 2;
      const std::vector<float> x = RandomFloats(m * ld, 1), weight = RandomFloats(k, 2);
      for (float offset : {0.0f, 1.0f}) {
        std::vector<float> y(m * ld, -7);
        RmsNorm(x.data(), y.data(), {m, k, ld}, weight.data(), offset, 1e-5f, pool);
        for (int64_t t = 0; t < m; ++t) {
          double squares = 0;
          for (int64_t c = 0; c < k; ++c) squares += double{x[t * ld + c]} * x[t * ld + c];
          const double inverse = 1 / std::sqrt(squares / k + 1e-5);
          for (int64_t c = 0; c < k; ++c) {
            const double gain = double{weight[c]} + offset;
            const double want = x[t * ld + c] * inverse * gain;
            const double slack = std::abs(x[t * ld + c] * inverse) * kEps * (1 + std::abs(gain));
            ASSERT_NEAR(y[t * ld + c], want, (0.5 * k + 4) * kEps * std::abs(want) + slack);
          }
          EXPECT_EQ(y[t * ld + k], -7);
        }
      }
    }
  }
}

TEST(RmsNormTest, SegmentsAreNormalisedAloneAndInPlace) {
  ThreadPool pool(1);
  const int64_t heads = 3, dim = 24;
  const std::vector<float> x = RandomFloats(2 * heads * dim, 1), weight = RandomFloats(dim, 2);
  std::vector<float> want(x.size()), got = x;
  for (int64_t h = 0; h < 2 * heads; ++h) {
    RmsNorm(&x[h * dim], &want[h * dim], {1, dim, dim}, weight.data(), 0, 1e-6f, pool);
  }
  RmsNorm(got.data(), got.data(), {2, heads * dim, heads * dim, heads}, weight.data(), 0, 1e-6f,
          pool);
  EXPECT_EQ(got, want);
}

TEST(LayerNormTest, EqualsItsDefinitionUpToRounding) {
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (int64_t k : kWidths) {
      std::vector<float> x = RandomFloats(k, 1);
      const std::vector<float> weight = RandomFloats(k, 2), bias = RandomFloats(k, 3);
      for (float& v : x) v += 5;  // a mean that must not drown the variance
      std::vector<float> y(k);
      LayerNorm(x.data(), y.data(), {1, k, k}, weight.data(), bias.data(), 1e-5f, pool);
      double mean = 0, variance = 0, magnitude = 0;
      for (float v : x) mean += v / double(k), magnitude += std::abs(v) / double(k);
      for (float v : x) variance += (v - mean) * (v - mean) / k;
      const double inverse = 1 / std::sqrt(variance + 1e-5);
      // The mean is off by k eps magnitude; the variance by that and by its own sum's rounding.
      const double mean_error = (k + 2) * kEps * magnitude;
      for (int64_t c = 0; c < k; ++c) {
        const double unit = (x[c] - mean) * inverse;
        const double unit_error = mean_error * inverse * (1 + unit * unit) +
                                  std::abs(unit) * (k + 6) * kEps + kEps * std::abs(x[c]) * inverse;
        ASSERT_NEAR(y[c], unit * weight[c] + bias[c],
                    unit_error * std::abs(weight[c]) + 2 * kEps * (std::abs(bias[c]) + 1))
            << IsaName(isa) << " k " << k;
      }
    }
  }
}

TEST(RopeTest, AnglesAreAccurateAtLargePositions) {
  const std::vector<int32_t> positions = {0, 1, 131071};
  const std::vector<double> inv_freq = {1.0, 0.1234567, 1e-4};
  std::vector<float> cos(9), sin(9);
  RopeAngles(positions.data(), 3, inv_freq.data(), 3, 2.0, cos.data(), sin.data());
  for (int t = 0; t < 3; ++t) {
    for (int i = 0; i < 3; ++i) {
      const long double angle = static_cast<long double>(positions[t]) * inv_freq[i];
      EXPECT_NEAR(cos[t * 3 + i], static_cast<double>(2 * cosl(angle)), 2 * kEps);
      EXPECT_NEAR(sin[t * 3 + i], static_cast<double>(2 * sinl(angle)), 2 * kEps);
    }
  }
}

TEST(RopeTest, RotatesHalvesAndLeavesTheRest) {
  ThreadPool pool(2);
  const int64_t m = 2, heads = 3, dim = 50, half = 21, ld = heads * dim + 1;
  const std::vector<float> x = RandomFloats(m * ld, 1);
  const std::vector<float> cos = RandomFloats(m * half, 2), sin = RandomFloats(m * half, 3);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    std::vector<float> y = x;
    ApplyRope(y.data(), m, ld, heads, dim, cos.data(), sin.data(), half, pool);
    for (int64_t i = 0; i < m * ld; ++i) {
      const int64_t t = i / ld, d = i % ld % dim;
      if (i % ld == heads * dim || d >= 2 * half) {
        EXPECT_EQ(y[i], x[i]);
        continue;
      }
      const double c = cos[t * half + d % half], s = sin[t * half + d % half];
      const double a = d < half ? x[i] * c : x[i - half] * s;
      const double b = d < half ? -x[i + half] * s : x[i] * c;
      EXPECT_NEAR(y[i], a + b, 2 * kEps * (std::abs(a) + std::abs(b))) << IsaName(isa);
    }
  }
}

struct NamedActivation {
  Activation f;
  std::function<double(double)> definition;
};

const NamedActivation kActivations[] = {
    {Activation::kIdentity, [](double x) { return x; }},
    {Activation::kSilu, [](double x) { return x / (1 + std::exp(-x)); }},
    {Activation::kGeluTanh,
     [](double x) {
       return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
     }},
    {Activation::kGeluErf, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }},
    {Activation::kRelu, [](double x) { return x > 0 ? x : 0; }},
};

// 1 + tanh and 1 + erf cancel for negative x, so the bound is on |x|, not on the result: ten
// roundings at most stand between x and f(x).
TEST(ActivationTest, EqualTheirDefinitionsUpToRounding) {
  ThreadPool pool(2);
  std::vector<float> x;
  for (float v = -100; v <= 100; v += 0.37f) x.push_back(v);
  for (float v = -6; v <= 6; v += 0.01f) x.push_back(v);
  const int64_t k = x.size();
  const std::vector<float> up = RandomFloats(k, 1);
  std::vector<float> both = x;
  both.insert(both.end(), up.begin(), up.end());
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (const auto& [f, definition] : kActivations) {
      std::vector<float> y(k, std::nanf("")), gated(k, std::nanf(""));
      Activate(f, x.data(), k, y.data(), k, 1, k, pool);
      ActivateGated(f, both.data(), 2 * k, gated.data(), k, 1, k, pool);
      for (int64_t i = 0; i < k; ++i) {
        const double want = definition(x[i]), slack = 10 * kEps * std::abs(x[i]);
        ASSERT_NEAR(y[i], want, slack) << IsaName(isa) << " " << static_cast<int>(f) << " " << x[i];
        ASSERT_NEAR(gated[i], want * up[i], (slack + kEps * std::abs(want)) * std::abs(up[i]));
      }
    }
  }
}

TEST(ActivationTest, NaNsAndInfinitiesShow) {
  ThreadPool pool(1);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (const auto& [f, definition] : kActivations) {
      float x[2] = {std::nanf(""), INFINITY}, y[2];
      Activate(f, x, 2, y, 2, 1, 2, pool);
      EXPECT_TRUE(std::isnan(y[0])) << IsaName(isa) << " " << static_cast<int>(f);
      EXPECT_FALSE(std::isfinite(y[1])) << IsaName(isa) << " " << static_cast<int>(f);
    }
  }
}

TEST(RowsTest, ALongBatchGivesWhatEachRowGivesAlone) {
  ThreadPool pool(3), one(1);
  const int64_t m = 70, k = 577;  // above the size that the caller does alone
  const std::vector<float> x = RandomFloats(m * k, 1), add = RandomFloats(m * k, 2);
  const std::vector<float> weight = RandomFloats(k, 3);
  std::vector<float> normed(m * k), activated(m * k), sums = x;
  RmsNorm(x.data(), normed.data(), {m, k, k}, weight.data(), 0, 1e-5f, pool);
  Activate(Activation::kSilu, x.data(), k, activated.data(), k, m, k, pool);
  AddRows(sums.data(), k, add.data(), k, m, k, pool);
  for (int64_t t = 0; t < m; ++t) {
    std::vector<float> y(k);
    RmsNorm(&x[t * k], y.data(), {1, k, k}, weight.data(), 0, 1e-5f, one);
    ASSERT_TRUE(std::equal(y.begin(), y.end(), normed.begin() + t * k));
    Activate(Activation::kSilu, &x[t * k], k, y.data(), k, 1, k, one);
    ASSERT_TRUE(std::equal(y.begin(), y.end(), activated.begin() + t * k));
    for (int64_t c = 0; c < k; ++c) ASSERT_EQ(sums[t * k + c], x[t * k + c] + add[t * k + c]);
  }
}

TEST(LogitsTest, ArgMaxTakesTheFirstLargestAndRefusesNonFinite) {
  EXPECT_EQ(ArgMax(std::vector<float>{1, 3, 2, 3}.data(), 4), 1);
  EXPECT_EQ(ArgMax(std::vector<float>{-INFINITY, -5}.data(), 2), 1);
  EXPECT_EQ(ArgMax(std::vector<float>{-INFINITY, -INFINITY}.data(), 2), 0);
  EXPECT_EQ(ArgMax(std::vector<float>{1, std::nanf(""), 2}.data(), 3), -1);
  EXPECT_EQ(ArgMax(std::vector<float>{1, INFINITY}.data(), 2), -1);
}

TEST(LogitsTest, SoftmaxAndLogSumExpEqualTheirDefinitions) {
  const int64_t n = 1003;
  const std::vector<float> x = RandomFloats(n, 1, 8.0f);
  const double max = *std::max_element(x.begin(), x.end());
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (float inverse : {1.0f, 0.25f}) {
      double sum = 0;
      for (float v : x) sum += std::exp((v - max) * inverse);
      std::vector<float> y = x;
      Softmax(y.data(), n, inverse);
      for (int64_t i = 0; i < n; ++i) {
        const double exponent = (x[i] - max) * inverse, want = std::exp(exponent) / sum;
        // Two roundings of the exponent, then a few of the exponential, sum and quotient; below
        // e^-87 the exponential is 0.
        ASSERT_NEAR(y[i], want, want * kEps * (2 * std::abs(exponent) + 16) + 2e-38)
            << IsaName(isa);
      }
      if (inverse == 1) {
        EXPECT_NEAR(LogSumExp(x.data(), n), max + std::log(sum), 16 * kEps);
      }
    }
  }
}

}  // namespace
}  // namespace babai::cpu
