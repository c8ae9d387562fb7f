#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/sparse.h"
#include "tests/kernels/formats_fixtures.h"
#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

struct Shape {
  int64_t rows, cols;
  int every;  // one entry in so many weights
};

SparseWeights Random(const Shape& s) {
  const SparseRows rows = RandomSparseRows(s.rows, s.cols, s.every, 3);
  SparseWeights w(s.cols);
  for (int64_t r = 0; r < s.rows; ++r) {
    for (uint32_t i = rows.row_begin[r]; i < rows.row_begin[r + 1]; ++i) {
      w.Add(rows.columns[i], HalfToFloat(rows.values[i]));
    }
    w.EndRow();
  }
  return w;
}

// What is there before, plus the product. The rows of x and y are further apart than they need.
std::vector<float> AddProduct(const SparseWeights& w, const std::vector<float>& x, int64_t m,
                              float before, ThreadPool& pool) {
  const int64_t k = w.cols(), n = w.rows(), ldx = k + 3, ldy = n + 5;
  std::vector<float> wide_x(m * ldx, std::nanf("")), wide_y(m * ldy, before), y(m * n);
  for (int64_t t = 0; t < m; ++t) std::copy_n(&x[t * k], k, &wide_x[t * ldx]);
  AlignedBuffer scratch(MatmulScratchBytes(m, k));
  AddMatmulSparse(w, {wide_x.data(), m, ldx, nullptr, wide_y.data(), ldy, scratch.data()}, pool);
  for (int64_t t = 0; t < m; ++t) {
    std::copy_n(&wide_y[t * ldy], n, &y[t * n]);
    for (int64_t i = n; i < ldy; ++i) EXPECT_EQ(wide_y[t * ldy + i], before);
  }
  return y;
}

class SparseMatmulTest : public testing::TestWithParam<Shape> {};

TEST_P(SparseMatmulTest, AddsTheProductWhateverTheBatchAndThreads) {
  const SparseWeights w = Random(GetParam());
  const int64_t k = w.cols(), n = w.rows(), most = 21;
  const std::vector<float> x = RandomFloats(most * k, 1);
  ThreadPool one(1), three(3);
  const std::vector<float> all = AddProduct(w, x, most, 2.0f, three);
  for (int64_t t = 0; t < most; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      double want = 2, magnitude = 2;
      const int64_t begin = w.row_begin()[r], end = w.row_begin()[r + 1];
      for (int64_t i = begin; i < end; ++i) {
        const double term = double{w.values()[i]} * x[t * k + w.columns()[i]];
        want += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(all[t * n + r], want, (end - begin + 2) * kEps * magnitude);
    }
  }
  for (const int64_t m : {1, 4, 5, 8, 13}) {
    const std::vector<float> last(x.end() - m * k, x.end());
    for (ThreadPool* pool : {&one, &three}) {
      const std::vector<float> y = AddProduct(w, last, m, 2.0f, *pool);
      ASSERT_TRUE(std::equal(y.begin(), y.end(), all.end() - m * n)) << m;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SparseMatmulTest,
                         testing::Values(Shape{1, 1, 1}, Shape{5, 40, 3}, Shape{100, 300, 50},
                                         Shape{33, 64, 1},         // every weight
                                         Shape{64, 100, 1 << 30},  // one entry in all
                                         Shape{2, 65536, 500}));   // the last column there is

TEST(SparseMatmulTest, NothingForNoEntriesOrNoTokens) {
  SparseWeights w(8);
  w.EndRow();
  ThreadPool pool(1);
  EXPECT_TRUE(w.empty());
  AddMatmulSparse(w, {.m = 3}, pool);
  const SparseWeights full = Random({4, 8, 1});
  AddMatmulSparse(full, {.m = 0}, pool);
}

}  // namespace
}  // namespace babai::cpu
