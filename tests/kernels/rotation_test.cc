#include "kernels/formats/rotation.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace babai {
namespace {

std::vector<double> Normal(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(n);
  for (double& v : values) v = normal(rng);
  return values;
}

std::vector<float> Narrow(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

// The header's formula, entry by entry.
double Entry(const Rotation& r, int64_t i, int64_t j) {
  if (i / r.block != j / r.block) return 0;
  uint64_t x = r.seed + j + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const int odd = std::popcount(static_cast<uint64_t>((i % r.block) & (j % r.block))) & 1;
  return ((x & 1) ^ odd ? -1.0 : 1.0) / std::sqrt(static_cast<double>(r.block));
}

struct Shape {
  int64_t dimension, block;
};
class RotationTest : public testing::TestWithParam<Shape> {
 protected:
  // What fp32 may lose in log2(block) additions and a product of values about 1.
  double tolerance() const { return 1e-6 * (2 + std::log2(GetParam().block)); }
};

TEST_P(RotationTest, IsItsDefinition) {
  const auto [n, block] = GetParam();
  const Rotation r = {block, 12345};
  const std::vector<double> x = Normal(3 * n, 1);
  std::vector<float> rows = Narrow(x), columns(3 * n), back = rows;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t t = 0; t < 3; ++t) columns[i * 3 + t] = rows[t * n + i];
  }
  std::vector<float> columns_back = columns;
  Rotate(r, rows.data(), 3, n);
  RotateBack(r, back.data(), 3, n);
  RotateColumns(r, columns.data(), n, 3);
  RotateColumnsBack(r, columns_back.data(), n, 3);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t i = 0; i < n; ++i) {
      double want = 0, want_back = 0;
      for (int64_t j = 0; j < n; ++j) {
        want += Entry(r, i, j) * x[t * n + j];
        want_back += Entry(r, j, i) * x[t * n + j];
      }
      if (block == 1) want = want_back = x[t * n + i];
      ASSERT_NEAR(rows[t * n + i], want, tolerance() * 4);
      ASSERT_NEAR(back[t * n + i], want_back, tolerance() * 4);
      ASSERT_NEAR(columns[i * 3 + t], want, tolerance() * 4);
      ASSERT_NEAR(columns_back[i * 3 + t], want_back, tolerance() * 4);
    }
  }
}

TEST_P(RotationTest, BackUndoesIt) {
  const auto [n, block] = GetParam();
  const Rotation r = {block, 99};
  const std::vector<float> x = Narrow(Normal(2 * n, 2));
  std::vector<float> there = x;
  Rotate(r, there.data(), 2, n);
  RotateBack(r, there.data(), 2, n);
  for (int64_t i = 0; i < 2 * n; ++i) ASSERT_NEAR(there[i], x[i], tolerance() * 4);
}

// A vector's result does not depend on how many are turned with it.
TEST_P(RotationTest, RowsDoNotDependOnEachOther) {
  const auto [n, block] = GetParam();
  const Rotation r = {block, 5};
  std::vector<float> together = Narrow(Normal(4 * n, 3)), alone = together;
  Rotate(r, together.data(), 4, n);
  for (int64_t t = 0; t < 4; ++t) Rotate(r, &alone[t * n], 1, n);
  EXPECT_EQ(together, alone);
  const std::vector<float> scales = RotationScales(r, n);
  std::vector<float> steps = Narrow(Normal(4 * n, 3));
  for (int64_t i = 0; i < n && block > 1; ++i) steps[i] *= scales[i];
  if (block > 1) Hadamard(steps.data(), n, block);
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(steps[i], alone[i]);
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotationTest,
                         testing::Values(Shape{7, 1}, Shape{6, 2}, Shape{12, 4}, Shape{24, 8},
                                         Shape{48, 16}, Shape{96, 32}, Shape{576, 64},
                                         Shape{384, 128}, Shape{512, 512}));

// tr(R H R') and x'Hx survive: the metric is turned as the vectors are.
TEST(RotateMetricTest, KeepsEnergies) {
  constexpr int64_t n = 192;
  const Rotation r = {64, 3};
  const std::vector<double> a = Normal(n * n, 4);
  std::vector<double> h(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t k = 0; k < n; ++k) h[i * n + j] += a[i * n + k] * a[j * n + k];
    }
  }
  std::vector<double> turned = h;
  RotateMetric(r, turned.data(), n);
  double worst = 0;
  for (int64_t i = 0; i < n; i += 17) {
    for (int64_t j = 0; j < n; j += 13) {
      double want = 0;
      for (int64_t k = i / 64 * 64; k < i / 64 * 64 + 64; ++k) {
        for (int64_t l = j / 64 * 64; l < j / 64 * 64 + 64; ++l) {
          want += Entry(r, i, k) * h[k * n + l] * Entry(r, j, l);
        }
      }
      worst = std::max(worst, std::abs(want - turned[i * n + j]));
    }
  }
  EXPECT_LT(worst, 1e-11 * n);
}

TEST(RotationBlockTest, IsTheLargestPowerOfTwoThatFits) {
  EXPECT_EQ(RotationBlock(4096), 128);
  EXPECT_EQ(RotationBlock(576), 64);
  EXPECT_EQ(RotationBlock(1536), 128);
  EXPECT_EQ(RotationBlock(7), 1);
  EXPECT_TRUE(RotationFits({64, 0}, 576));
  EXPECT_FALSE(RotationFits({128, 0}, 576));
  EXPECT_FALSE(RotationFits({3, 0}, 576));
  EXPECT_FALSE(RotationFits({0, 0}, 576));
  EXPECT_FALSE(RotationFits({-64, 0}, 576));
  EXPECT_FALSE(RotationFits({std::numeric_limits<int64_t>::min(), 0}, 576));
}

}  // namespace
}  // namespace babai
