#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "kernels/cpu/matmul.h"
#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

struct Shape {
  int64_t n, k;
};

// A row-major matrix of a given type, and what its numbers mean.
struct Source {
  std::vector<float> meaning, f32;
  std::vector<uint16_t> bits;
  DenseView view;
};

Source MakeSource(FloatType type, int64_t n, int64_t k, uint32_t seed) {
  Source s;
  s.meaning = RandomFloats(n * k, seed);
  for (float& v : s.meaning) {
    if (type == FloatType::kF32) s.f32.push_back(v);
    if (type == FloatType::kF16) s.bits.push_back(FloatToHalf(v)), v = HalfToFloat(s.bits.back());
    if (type == FloatType::kBf16) s.bits.push_back(FloatToBf16(v)), v = Bf16ToFloat(s.bits.back());
  }
  s.view = {type == FloatType::kF32 ? static_cast<const void*>(s.f32.data()) : s.bits.data(), type,
            n, k};
  return s;
}

class DenseMatmulTest : public testing::TestWithParam<std::tuple<Shape, FloatType>> {
 protected:
  void SetUp() override {
    const auto [shape, type] = GetParam();
    source_ = MakeSource(type, shape.n, shape.k, 1);
    auto made = DenseWeights::Make({source_.view});
    ASSERT_TRUE(made.ok()) << made.status();
    weights_ = *std::move(made);
  }
  Source source_;
  DenseWeights weights_;
};

// Summing k terms in fp32 moves the result by at most k * eps * sum |w x|; the bias adds a step.
TEST_P(DenseMatmulTest, EqualsItsDefinitionUpToRounding) {
  const int64_t n = weights_.rows(), k = weights_.cols();
  const std::vector<float> bias = RandomFloats(n, 3);
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    for (int64_t m : {1, 3, 8, 19}) {
      const std::vector<float> x = RandomFloats(m * k, 2);
      const std::vector<float> y = RunMatmul(MatmulDense, weights_, x, m, pool, bias.data());
      for (int64_t i = 0; i < m * n; ++i) {
        double want = bias[i % n], magnitude = std::abs(want);
        for (int64_t c = 0; c < k; ++c) {
          const double term = double{source_.meaning[i % n * k + c]} * x[i / n * k + c];
          want += term;
          magnitude += std::abs(term);
        }
        ASSERT_NEAR(y[i], want, (k + 1) * kEps * magnitude)
            << IsaName(isa) << " m " << m << " at " << i;
      }
    }
  }
}

TEST_P(DenseMatmulTest, ATokensResultDoesNotDependOnTheBatch) {
  const int64_t n = weights_.rows(), k = weights_.cols(), most = 33;
  const std::vector<float> x = RandomFloats(most * k, 5);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    ThreadPool one_thread(1);
    std::vector<float> alone;
    for (int64_t t = 0; t < most; ++t) {
      const std::vector<float> one(&x[t * k], &x[t * k] + k);
      const std::vector<float> y = RunMatmul(MatmulDense, weights_, one, 1, one_thread);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    ASSERT_EQ(static_cast<int64_t>(alone.size()), most * n);
    for (int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (int64_t m : {2, 3, 4, 5, 8, 16, 17, 33}) {
        const std::vector<float> y = RunMatmul(MatmulDense, weights_, x, m, pool);
        ASSERT_TRUE(std::equal(y.begin(), y.end(), alone.begin()))
            << IsaName(isa) << " m " << m << " threads " << threads;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, DenseMatmulTest,
    testing::Combine(testing::Values(Shape{1, 1}, Shape{17, 5}, Shape{96, 33}, Shape{70, 640}),
                     testing::Values(FloatType::kF32, FloatType::kF16, FloatType::kBf16)));

TEST(DenseWeightsTest, StacksPartsByRows) {
  const int64_t k = 20;
  const Source a = MakeSource(FloatType::kF16, 5, k, 1), b = MakeSource(FloatType::kF16, 14, k, 2);
  const auto both = DenseWeights::Make({a.view, b.view});
  ASSERT_TRUE(both.ok());
  ASSERT_EQ(both->rows(), 19);
  ThreadPool pool(1);
  std::vector<float> x(k, 0.0f);
  x[7] = 1;
  const std::vector<float> y = RunMatmul(MatmulDense, *both, x, 1, pool);
  for (int64_t r = 0; r < 5; ++r) EXPECT_EQ(y[r], a.meaning[r * k + 7]);
  for (int64_t r = 0; r < 14; ++r) EXPECT_EQ(y[5 + r], b.meaning[r * k + 7]);
}

TEST(DenseWeightsTest, RefusesPartsThatDiffer) {
  const Source a = MakeSource(FloatType::kF16, 4, 8, 1), b = MakeSource(FloatType::kF16, 4, 9, 1);
  const Source c = MakeSource(FloatType::kBf16, 4, 8, 1);
  EXPECT_FALSE(DenseWeights::Make({}).ok());
  EXPECT_FALSE(DenseWeights::Make({a.view, b.view}).ok());
  EXPECT_FALSE(DenseWeights::Make({a.view, c.view}).ok());
  EXPECT_FALSE(DenseWeights::Make({DenseView{}}).ok());
}

}  // namespace
}  // namespace babai::cpu
