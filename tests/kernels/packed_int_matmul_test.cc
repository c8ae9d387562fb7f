#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "kernels/cpu/matmul.h"
#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

struct Shape {
  int64_t n, k, group;
};
using Case = std::tuple<Shape, int, bool>;  // shape, bits, asymmetric

class PackedIntMatmulTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto [shape, bits, asymmetric] = GetParam();
    packed_ = RandomPackedInt(shape.n, shape.k, shape.group, bits, asymmetric, 1);
    auto made = PackedIntWeights::Make({packed_.view()});
    ASSERT_TRUE(made.ok()) << made.status();
    weights_ = *std::move(made);
  }
  PackedInt packed_;
  PackedIntWeights weights_;
  ThreadPool pool_{2};
};

// What a product should be, and how far fp32 rounding may move it.
struct Want {
  double value = 0, magnitude = 0;
  void Add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

Want ExactWant(const PackedIntView& w, const float* x, int64_t row) {
  Want want;
  for (int64_t c = 0; c < w.cols; ++c) want.Add(double{DecodeWeight(w, row, c)} * x[c]);
  return want;
}

// A row of activations as matmul.h says MatmulInt8 rounds it.
std::vector<double> RoundedActivations(const float* x, int64_t k) {
  std::vector<double> rounded(k);
  for (int64_t begin = 0; begin < k; begin += 32) {
    const int64_t end = std::min(k, begin + 32);
    float absmax = 0;
    for (int64_t c = begin; c < end; ++c) absmax = std::max(absmax, std::abs(x[c]));
    const float scale = absmax / 127.0f, inverse = absmax > 0 ? 127.0f / absmax : 0;
    for (int64_t c = begin; c < end; ++c) rounded[c] = std::nearbyint(x[c] * inverse) * scale;
  }
  return rounded;
}

Want Int8Want(const PackedIntView& w, const std::vector<double>& x, int64_t row) {
  Want want;
  for (int64_t c = 0; c < w.cols; ++c) want.Add(DecodeWeight(w, row, c) * x[c]);
  return want;
}

// Sums of k terms in fp32 move by at most k * eps * sum |w x|; two more roundings decode a weight.
TEST_P(PackedIntMatmulTest, ExactEqualsItsDefinitionUpToRounding) {
  const int64_t n = weights_.rows(), k = weights_.cols(), m = 11;
  const std::vector<float> x = RandomFloats(m * k, 2), bias = RandomFloats(n, 3);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    const std::vector<float> y = RunMatmul(MatmulExact, weights_, x, m, pool_, bias.data());
    for (int64_t t = 0; t < m; ++t) {
      for (int64_t r = 0; r < n; ++r) {
        Want want = ExactWant(packed_.view(), &x[t * k], r);
        want.Add(bias[r]);
        ASSERT_NEAR(y[t * n + r], want.value, (k + 3) * kEps * want.magnitude)
            << IsaName(isa) << " token " << t << " row " << r;
      }
    }
  }
}

// Integers are exact within 32 inputs. What rounds is one fused step for each such group and each
// weight group, the scales (half an ulp each) and the bias.
TEST_P(PackedIntMatmulTest, Int8EqualsItsDefinitionUpToRounding) {
  const int64_t n = weights_.rows(), k = weights_.cols(), m = 11;
  const std::vector<float> x = RandomFloats(m * k, 2), bias = RandomFloats(n, 3);
  const double steps = (k + 31) / 32 + weights_.groups() + 4;
  const WithIsa with(SupportedIsas().back());
  const std::vector<float> y = RunMatmul(MatmulInt8, weights_, x, m, pool_, bias.data());
  for (int64_t t = 0; t < m; ++t) {
    const std::vector<double> rounded = RoundedActivations(&x[t * k], k);
    for (int64_t r = 0; r < n; ++r) {
      Want want = Int8Want(packed_.view(), rounded, r);
      want.Add(bias[r]);
      ASSERT_NEAR(y[t * n + r], want.value, steps * kEps * want.magnitude)
          << "token " << t << " row " << r;
    }
  }
}

TEST_P(PackedIntMatmulTest, Int8HasTheSameBitsOnEveryInstructionSet) {
  const int64_t k = weights_.cols(), m = 11;
  const std::vector<float> x = RandomFloats(m * k, 4);
  std::vector<float> first;
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    const std::vector<float> y = RunMatmul(MatmulInt8, weights_, x, m, pool_);
    if (first.empty()) first = y;
    ASSERT_EQ(y, first) << IsaName(isa);
  }
}

// A token alone gives the bits it gives in any batch, for any number of threads.
TEST_P(PackedIntMatmulTest, ATokensResultDoesNotDependOnTheBatch) {
  const int64_t n = weights_.rows(), k = weights_.cols(), most = 33;
  const std::vector<float> x = RandomFloats(most * k, 5);
  for (Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar && n * k > 4096) continue;  // the same code for any m; slow
    const WithIsa with(isa);
    for (auto matmul : {MatmulInt8, MatmulExact}) {
      std::vector<float> alone;
      for (int64_t t = 0; t < most; ++t) {
        const std::vector<float> one(&x[t * k], &x[t * k] + k);
        const std::vector<float> y = RunMatmul(matmul, weights_, one, 1, pool_);
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (int threads : {1, 2, 3}) {
        ThreadPool pool(threads);
        for (int64_t m : {1, 2, 3, 4, 5, 8, 16, 17, 33}) {
          const std::vector<float> y = RunMatmul(matmul, weights_, x, m, pool);
          ASSERT_TRUE(std::equal(y.begin(), y.end(), alone.begin()))
              << IsaName(isa) << " m " << m << " threads " << threads;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, PackedIntMatmulTest,
    testing::Combine(testing::Values(Shape{1, 32, 32},     // one group: tight bounds
                                     Shape{7, 172, 172},   // k no multiple of 32
                                     Shape{40, 96, 32},    // half a block at the end
                                     Shape{33, 192, 64},   // rows no multiple of 16
                                     Shape{50, 640, 128},  // more columns than one panel pass
                                     Shape{16, 5, 100}),   // a group longer than the row
                     testing::Values(2, 3, 4, 8), testing::Bool()));

TEST(PackedIntWeightsTest, StackedPartsGiveWhatEachGivesAlone) {
  const int64_t k = 128, m = 3;
  const PackedInt q = RandomPackedInt(24, k, 64, 4, true, 1);
  const PackedInt v = RandomPackedInt(9, k, 64, 4, true, 2);
  const auto both = PackedIntWeights::Make({q.view(), v.view()});
  const auto first = PackedIntWeights::Make({q.view()});
  const auto second = PackedIntWeights::Make({v.view()});
  ASSERT_TRUE(both.ok() && first.ok() && second.ok());
  ASSERT_EQ(both->rows(), 33);
  ThreadPool pool(2);
  const std::vector<float> x = RandomFloats(m * k, 3);
  const std::vector<float> y = RunMatmul(MatmulInt8, *both, x, m, pool);
  const std::vector<float> a = RunMatmul(MatmulInt8, *first, x, m, pool);
  const std::vector<float> b = RunMatmul(MatmulInt8, *second, x, m, pool);
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t r = 0; r < 24; ++r) EXPECT_EQ(y[t * 33 + r], a[t * 24 + r]);
    for (int64_t r = 0; r < 9; ++r) EXPECT_EQ(y[t * 33 + 24 + r], b[t * 9 + r]);
  }
}

TEST(PackedIntWeightsTest, RefusesWhatItCannotRun) {
  const PackedInt a = RandomPackedInt(4, 128, 64, 4, false, 1);
  const PackedInt zeros = RandomPackedInt(4, 128, 64, 4, true, 1);
  const PackedInt bits = RandomPackedInt(4, 128, 64, 3, false, 1);
  const PackedInt cols = RandomPackedInt(4, 192, 64, 4, false, 1);
  const PackedInt small_group = RandomPackedInt(4, 128, 16, 4, false, 1);
  EXPECT_FALSE(PackedIntWeights::Make({}).ok());
  EXPECT_FALSE(PackedIntWeights::Make({a.view(), zeros.view()}).ok());
  EXPECT_FALSE(PackedIntWeights::Make({a.view(), bits.view()}).ok());
  EXPECT_FALSE(PackedIntWeights::Make({a.view(), cols.view()}).ok());
  EXPECT_FALSE(PackedIntWeights::Make({small_group.view()}).ok());
}

TEST(PackedIntWeightsTest, CostsAboutItsPackedSize) {
  const PackedInt w = RandomPackedInt(576, 1536, 64, 4, true, 1);
  const auto made = PackedIntWeights::Make({w.view()});
  ASSERT_TRUE(made.ok());
  const int64_t packed = w.codes.size() + 2 * w.scales.size() + w.zeros.size();
  EXPECT_LE(made->bytes(), packed * 1.02);  // zeros take a byte each
}

double Rms(const std::vector<float>& v) {
  double sum = 0;
  for (float f : v) sum += double{f} * f;
  return std::sqrt(sum / v.size());
}

// Rounding moves a value by an error that is uniform within half a step: step^2 / 12 of power.
double PredictedErrorRms(const PackedIntView& w, const std::vector<float>& x, int64_t m) {
  double power = 0;
  for (int64_t begin = 0; begin < m * w.cols; begin += 32) {
    float absmax = 0;
    for (int64_t i = begin; i < begin + 32; ++i) absmax = std::max(absmax, std::abs(x[i]));
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t i = begin; i < begin + 32; ++i) {
        const double weight = DecodeWeight(w, r, i % w.cols);
        power += weight * weight * std::pow(absmax / 127.0, 2) / 12;
      }
    }
  }
  return std::sqrt(power / (m * w.rows));
}

// The error is what rounding must cost and no more, also where an outlier 30 times the rest sets
// the scale of its own 32 inputs. As a part of y: 0.6 % on Gaussian rows.
TEST(MatmulInt8Test, RelativeErrorOnGaussianAndOutlierRows) {
  const int64_t n = 128, k = 1024, m = 8;
  const PackedInt packed = RandomPackedInt(n, k, 64, 4, true, 1);
  const auto w = PackedIntWeights::Make({packed.view()});
  ASSERT_TRUE(w.ok());
  ThreadPool pool(1);
  for (const bool outliers : {false, true}) {
    std::vector<float> x = RandomFloats(m * k, 2);
    for (int64_t t = 0; outliers && t < m; ++t) {
      for (int64_t c = 5; c < k; c += 200) x[t * k + c] *= 30;
    }
    std::vector<float> y = RunMatmul(MatmulInt8, *w, x, m, pool);
    const std::vector<float> exact = RunMatmul(MatmulExact, *w, x, m, pool);
    for (size_t i = 0; i < y.size(); ++i) y[i] -= exact[i];
    const double predicted = PredictedErrorRms(packed.view(), x, m);
    EXPECT_NEAR(Rms(y), predicted, 0.15 * predicted) << (outliers ? "outliers" : "Gaussian");
    EXPECT_LT(Rms(y) / Rms(exact), outliers ? 0.015 : 0.008);
    std::printf("%s rows: relative error %.4f\n", outliers ? "outlier" : "Gaussian",
                Rms(y) / Rms(exact));
  }
}

TEST(MatmulInt8Test, NonFiniteActivationsShow) {
  const int64_t n = 20, k = 128, m = 3;
  const PackedInt packed = RandomPackedInt(n, k, 64, 4, true, 1);
  const auto w = PackedIntWeights::Make({packed.view()});
  ASSERT_TRUE(w.ok());
  ThreadPool pool(1);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      std::vector<float> x = RandomFloats(m * k, 2);
      x[k + 77] = bad;
      const std::vector<float> y = RunMatmul(MatmulInt8, *w, x, m, pool);
      for (int64_t r = 0; r < n; ++r) {
        EXPECT_TRUE(std::isfinite(y[r])) << IsaName(isa);
        EXPECT_FALSE(std::isfinite(y[n + r])) << IsaName(isa) << " " << bad << " row " << r;
        EXPECT_TRUE(std::isfinite(y[2 * n + r])) << IsaName(isa);
      }
    }
  }
}

TEST(MatmulInt8Test, ZeroAndTinyActivationsGiveZero) {
  const PackedInt packed = RandomPackedInt(16, 64, 64, 8, true, 1);
  const auto w = PackedIntWeights::Make({packed.view()});
  ASSERT_TRUE(w.ok());
  ThreadPool pool(1);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (float value : {0.0f, 1e-38f, 1e-42f}) {
      const std::vector<float> x(64, value);
      for (float y : RunMatmul(MatmulInt8, *w, x, 1, pool)) EXPECT_EQ(y, 0.0f) << IsaName(isa);
    }
  }
}

}  // namespace
}  // namespace babai::cpu
