#include "kernels/cpu/token_products.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

TokenPanels Panels(const std::vector<float>& x, const float* minus, int64_t width,
                   ThreadPool& pool) {
  TokenPanels panels;
  EXPECT_TRUE(
      panels.Fill(x.data(), minus, static_cast<int64_t>(x.size()) / width, width, pool).ok());
  return panels;
}

// Sums of t products in fp32 are off by at most t eps times the sum of magnitudes.
void ExpectProducts(const std::vector<double>& got, const std::vector<float>& a, int64_t rows,
                    const std::vector<float>& b, int64_t cols, bool lower) {
  const auto tokens = static_cast<int64_t>(a.size()) / rows;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < (lower ? i + 1 : cols); ++j) {
      double want = 1, magnitude = 0;  // the sums began with 1
      for (int64_t t = 0; t < tokens; ++t) {
        const double product = double{a[t * rows + i]} * b[t * cols + j];
        want += product;
        magnitude += std::abs(product);
      }
      ASSERT_NEAR(got[i * cols + j], want, tokens * kEps * magnitude) << i << ", " << j;
    }
  }
}

TEST(TokenProductsTest, AddToTheSumsOnEveryInstructionSet) {
  ThreadPool pool(3);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    // Less than a panel; more than a block of rows; neither a multiple of 16 nor of 8.
    for (int64_t rows : {1, 16, 77, 203}) {
      for (int64_t tokens : {1, 60}) {
        const int64_t cols = 2 * rows + 5;
        const auto a = RandomFloats(tokens * rows, 1), b = RandomFloats(tokens * cols, 2);
        const TokenPanels pa = Panels(a, nullptr, rows, pool), pb = Panels(b, nullptr, cols, pool);
        std::vector<double> cross(rows * cols, 1.0), gram(cols * cols, 1.0);
        AddProducts(pa, pb, cross.data(), pool);
        ExpectProducts(cross, a, rows, b, cols, false);
        AddGram(pb, gram.data(), pool);
        ExpectProducts(gram, b, cols, b, cols, true);
      }
    }
  }
}

TEST(TokenProductsTest, HaveTheSameBitsForAnyNumberOfThreads) {
  const auto a = RandomFloats(500 * 130, 1);
  std::vector<std::vector<double>> sums;
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    sums.emplace_back(130 * 130, 0.0);
    AddGram(Panels(a, nullptr, 130, pool), sums.back().data(), pool);
  }
  EXPECT_EQ(sums[0], sums[1]);
  EXPECT_EQ(sums[0], sums[2]);
}

TEST(TokenProductsTest, PanelsHoldDifferencesAndAreFilledAgain) {
  ThreadPool pool(2);
  const auto x = RandomFloats(40 * 21, 1), less = RandomFloats(40 * 21, 2);
  std::vector<float> difference(x.size());
  for (size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - less[i];
  TokenPanels panels = Panels(RandomFloats(90 * 33, 3), nullptr, 33, pool);
  ASSERT_TRUE(panels.Fill(x.data(), less.data(), 40, 21, pool).ok());
  EXPECT_EQ(panels.tokens(), 40);
  EXPECT_EQ(panels.width(), 21);
  std::vector<double> gram(21 * 21, 1.0);
  AddGram(panels, gram.data(), pool);
  ExpectProducts(gram, difference, 21, difference, 21, true);
}

TEST(TokenProductsTest, TellWhetherAllIsBelowALimit) {
  ThreadPool pool(2);
  std::vector<float> x = RandomFloats(30 * 50, 1);
  x[777] = -3.5f;
  EXPECT_TRUE(Panels(x, nullptr, 50, pool).AllBelow(3.6f, pool));
  EXPECT_FALSE(Panels(x, nullptr, 50, pool).AllBelow(3.5f, pool));
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    x[1499] = bad;
    EXPECT_FALSE(Panels(x, nullptr, 50, pool).AllBelow(1e30f, pool));
  }
}

}  // namespace
}  // namespace babai::cpu
