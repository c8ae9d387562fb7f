// What stands around a packed matrix: the transform of rows, and sparse products.
#include <algorithm>
#include <cmath>
#include <vector>

#include "device.h"
#include "kernels/cuda/hadamard.h"
#include "kernels/cuda/sparse_add.h"
#include "kernels/formats/rotation.h"
#include "values.h"

namespace babai::cuda {
namespace {

using HadamardTest = GpuTest;
using SparseAddTest = GpuTest;

constexpr Queue kQueue{};

// fp32 sums of `levels` additions; then one rounding.
TEST_F(HadamardTest, IsTheFormatsTransform) {
  for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
    for (const int block : {1, 2, 4, 8, 32, 64, 128, 256, 512, 1024, 4096}) {
      for (const int blocks : {1, 3}) {
        const int width = std::max(block, 4) * blocks, rows = 3;
        const Rotation rotation{block, 77};
        const std::vector<float> scales =
            block > 1 ? RotationScales(rotation, width) : std::vector<float>(width, 1);
        const std::vector<float> after = RandomFloats(width, 2);
        const std::vector<uint16_t> x = Encoded(RandomFloats(rows * width, 3), dtype);
        std::vector<float> want = Decoded(x, dtype);
        if (block > 1) babai::Rotate(rotation, want.data(), rows, width);
        const DeviceVector<uint16_t> in(x), out(x);
        const DeviceVector<float> before_there(scales), after_there(after);
        Launched(Hadamard({in.data(), out.data(), before_there.data(), after_there.data(), rows,
                           width, block, dtype},
                          kQueue));
        const std::vector<float> got = Decoded(out.ToHost(), dtype);
        for (int i = 0; i < rows * width; ++i) {
          const float value = want[i] * after[i % width];
          ASSERT_NEAR(got[i], value, 1.01 * HalfUlp(dtype) * std::abs(value) + 1e-5)
              << "block " << block << " width " << width << " at " << i;
        }
      }
    }
  }
}

TEST_F(HadamardTest, WorksInPlaceAndTwiceIsTheBlockTimesOne) {
  constexpr int kWidth = 768, kBlock = 256;
  std::vector<float> ones(kWidth, 0);
  for (int i = 0; i < kWidth; ++i) ones[i] = i % 7 - 3;  // sums stay exact in fp16
  const DeviceVector<uint16_t> x(Encoded(ones, Dtype::kFp16));
  for (int i = 0; i < 2; ++i) {
    Launched(
        Hadamard({x.data(), x.data(), nullptr, nullptr, 1, kWidth, kBlock, Dtype::kFp16}, kQueue));
  }
  const std::vector<float> got = Decoded(x.ToHost(), Dtype::kFp16);
  for (int i = 0; i < kWidth; ++i) ASSERT_EQ(got[i], kBlock * ones[i]) << i;
}

TEST_F(HadamardTest, RefusesWhatItHasNoKernelFor) {
  const DeviceVector<uint16_t> x(std::vector<uint16_t>(32768));
  const auto run = [&](int width, int block) {
    return Hadamard({x.data(), x.data(), nullptr, nullptr, 1, width, block, Dtype::kFp16}, kQueue);
  };
  EXPECT_EQ(run(96, 24), cudaErrorInvalidValue);
  EXPECT_EQ(run(96, 64), cudaErrorInvalidValue);
  EXPECT_EQ(run(6, 2), cudaErrorInvalidValue);
  EXPECT_EQ(run(2 * kMostHadamardBlock, 2 * kMostHadamardBlock), cudaErrorInvalidValue);
}

struct Sparse {
  std::vector<int32_t> row_begin{0};
  std::vector<uint16_t> columns;
  std::vector<float> values;
};

// Rows without entries, with one, with a few and with nearly all columns.
Sparse RandomSparse(int n, int k, uint32_t seed) {
  std::mt19937 rng(seed);
  Sparse s;
  for (int r = 0; r < n; ++r) {
    const unsigned share[] = {0, 1, 20, 900};  // in a thousand
    for (int c = 0; c < k; ++c) {
      if (rng() % 1000 >= share[rng() % 4 == 0 ? 3 : r % 4]) continue;
      s.columns.push_back(c);
      s.values.push_back(0.001f * static_cast<float>(rng() % 2000) - 1);
    }
    s.row_begin.push_back(static_cast<int32_t>(s.columns.size()));
  }
  return s;
}

TEST_F(SparseAddTest, AddsToWhatIsThere) {
  struct Case {
    int n, k, m;
  };
  for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
    for (const Case& c : {Case{1, 32, 1},
                          {37, 96, 1},
                          {8200, 32, 3},
                          {70, 24000, 4},
                          {300, 256, 5},
                          {16, 64, 2},
                          {37, 96, 8},
                          {33, 160, 9},
                          {48, 32, 17},
                          {5, 104, 70},
                          {17, 64, 300}}) {
      const Sparse s = RandomSparse(c.n, c.k, 5);
      const std::vector<uint16_t> x = Encoded(RandomFloats(c.m * c.k, 6), dtype);
      const std::vector<uint16_t> y = Encoded(RandomFloats(c.m * c.n, 7), dtype);
      const DeviceVector<uint16_t> x_there(x), y_there(y);
      const DeviceVector<uint8_t> transposed(std::vector<uint8_t>(TransposedBytes(c.m, c.k), 0xff));
      const DeviceVector<int32_t> row_begin(s.row_begin);
      const DeviceVector<uint16_t> columns(s.columns);
      const DeviceVector<float> values(s.values);
      Launched(SparseAdd({x_there.data(),
                          transposed.data(),
                          y_there.data(),
                          {row_begin.data(), columns.data(), values.data()},
                          c.m,
                          c.n,
                          c.k,
                          dtype},
                         kQueue));
      const std::vector<float> got = Decoded(y_there.ToHost(), dtype);
      for (int t = 0; t < c.m; ++t) {
        for (int r = 0; r < c.n; ++r) {
          double want = Decode(y[t * c.n + r], dtype), norm = 0;
          for (int i = s.row_begin[r]; i < s.row_begin[r + 1]; ++i) {
            const double v = double{s.values[i]} * Decode(x[t * c.k + s.columns[i]], dtype);
            want += v, norm += std::abs(v);
          }
          ASSERT_NEAR(got[t * c.n + r], want, HalfUlp(dtype) * std::abs(want) + 1e-6 * (1 + norm))
              << "n " << c.n << " k " << c.k << " m " << c.m << " token " << t << " row " << r;
        }
      }
    }
  }
}

TEST_F(SparseAddTest, RefusesWhatItHasNoKernelFor) {
  const auto run = [](int k) {
    return SparseAdd({nullptr, nullptr, nullptr, {}, 1, 16, k, Dtype::kFp16}, kQueue);
  };
  EXPECT_EQ(run(100), cudaErrorInvalidValue);
  EXPECT_EQ(run(2 * kMostSparseCols), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace babai::cuda
