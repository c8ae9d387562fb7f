#include "kernels/formats/packed_int.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

using testing::HasSubstr;

struct Shape {
  int64_t rows, cols, group;
  int bits;
  bool asymmetric;
};

struct Random {
  std::vector<uint8_t> codes, zeros;
  std::vector<uint16_t> scales;
};

Random MakeRandom(const Shape& s) {
  std::mt19937 rng(7);
  const int64_t groups = (s.cols + s.group - 1) / s.group;
  Random r;
  const uint32_t mask = (1u << s.bits) - 1;
  for (int64_t i = 0; i < s.rows * s.cols; ++i) r.codes.push_back(rng() & mask);
  for (int64_t i = 0; i < s.rows * groups; ++i) {
    r.scales.push_back(FloatToHalf(0.001f + 0.0001f * (rng() % 100)));
    if (s.asymmetric) r.zeros.push_back(rng() & mask);
  }
  return r;
}

class PackedIntTest : public testing::TestWithParam<Shape> {};

TEST_P(PackedIntTest, DecodesWhatWasPacked) {
  const Shape s = GetParam();
  const Random r = MakeRandom(s);
  const auto packed = PackInt(r.codes, r.scales, r.zeros, s.rows, s.cols, s.group, s.bits);
  ASSERT_TRUE(packed.ok()) << packed.status();
  const PackedIntView w = packed->view();
  const int64_t groups = w.groups();
  std::vector<float> rows((s.rows - s.rows / 2) * s.cols, -1);
  DecodeRows(w, s.rows / 2, s.rows, rows.data());
  std::vector<uint8_t> codes(s.cols);
  for (int64_t i = 0; i < s.rows; ++i) {
    UnpackRow(w, i, codes.data());
    for (int64_t c = 0; c < s.cols; ++c) {
      const int code = r.codes[i * s.cols + c];
      const int64_t g = i * groups + c / s.group;
      const int zero = s.asymmetric ? r.zeros[g] : 1 << (s.bits - 1);
      ASSERT_EQ(CodeAt(w, i, c), code);
      ASSERT_EQ(codes[c], code);
      ASSERT_EQ(DecodeWeight(w, i, c), HalfToFloat(r.scales[g]) * (code - zero));
      if (i >= s.rows / 2) {
        ASSERT_EQ(rows[(i - s.rows / 2) * s.cols + c], DecodeWeight(w, i, c));
      }
    }
  }
}

// The promise of the layout, worked out bit by bit from the header's formula.
TEST_P(PackedIntTest, CodesAreALittleEndianBitStream) {
  const Shape s = GetParam();
  const Random r = MakeRandom(s);
  const auto packed = PackInt(r.codes, r.scales, r.zeros, s.rows, s.cols, s.group, s.bits);
  ASSERT_TRUE(packed.ok()) << packed.status();
  const int64_t row_bytes = (s.cols * s.bits + 31) / 32 * 4;
  ASSERT_EQ(static_cast<int64_t>(packed->codes.size()), s.rows * row_bytes);
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t bit = 0; bit < row_bytes * 8; ++bit) {
      const int got = packed->codes[row * row_bytes + bit / 8] >> (bit % 8) & 1;
      const int64_t c = bit / s.bits;
      const int want = c < s.cols ? r.codes[row * s.cols + c] >> (bit % s.bits) & 1 : 0;
      ASSERT_EQ(got, want) << "row " << row << " bit " << bit;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackedIntTest,
                         testing::Values(Shape{1, 1, 1, 2, true}, Shape{3, 7, 7, 3, true},
                                         Shape{5, 64, 32, 3, true}, Shape{4, 96, 32, 4, false},
                                         Shape{2, 172, 172, 4, true}, Shape{2, 100, 1000, 3, false},
                                         Shape{3, 128, 64, 8, true}, Shape{2, 33, 11, 2, true},
                                         Shape{2, 33, 3, 8, false}));

TEST(PackedIntViewTest, RefusesWhatTheHeaderForbids) {
  const std::vector<uint8_t> codes(2 * 32), zeros(2);
  const std::vector<uint16_t> scales(2 * 2);
  const auto make = [&](int64_t rows, int64_t cols, int64_t group, int bits) {
    return MakePackedIntView(codes, scales, zeros, rows, cols, group, bits).status();
  };
  EXPECT_TRUE(make(2, 64, 32, 4).ok());
  EXPECT_THAT(make(0, 64, 32, 4).message(), HasSubstr("rows"));
  EXPECT_THAT(make(2, -64, 32, 4).message(), HasSubstr("cols"));
  EXPECT_THAT(make(2, 64, 32, 5).message(), HasSubstr("bits"));
  EXPECT_THAT(make(2, 64, 0, 4).message(), HasSubstr("group"));
  EXPECT_THAT(make(2, 64, 48, 4).message(), HasSubstr("group"));
  EXPECT_THAT(make(3, 64, 32, 4).message(), HasSubstr("codes"));
  EXPECT_THAT(make(2, 64, 16, 4).message(), HasSubstr("scales"));
  const std::vector<uint8_t> long_zeros(3);
  EXPECT_FALSE(MakePackedIntView(codes, scales, long_zeros, 2, 64, 32, 4).ok());
}

TEST(PackedIntViewTest, SizesThatOverflowAreRefused) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  EXPECT_EQ(PackedIntCodeBytes(kHuge, 64, 4), -1);
  EXPECT_EQ(PackedIntCodeBytes(4, kHuge, 8), -1);
  EXPECT_EQ(PackedIntZeroBytes(kHuge, 64, 1, 4), -1);
  EXPECT_FALSE(MakePackedIntView({}, {}, {}, kHuge, kHuge, 32, 4).ok());
  EXPECT_FALSE(PackInt({}, {}, {}, kHuge, 64, 32, 4).ok());
}

TEST(PackIntTest, RefusesValuesThatDoNotFit) {
  const std::vector<uint8_t> codes(32, 8), zeros(1, 9);
  const std::vector<uint16_t> scales(1);
  EXPECT_THAT(PackInt(codes, scales, {}, 1, 32, 32, 3).status().message(), HasSubstr("code 8"));
  EXPECT_TRUE(PackInt(codes, scales, zeros, 1, 32, 32, 4).ok());
  const std::vector<uint8_t> large_zero(1, 16);
  EXPECT_THAT(PackInt(codes, scales, large_zero, 1, 32, 32, 4).status().message(),
              HasSubstr("zero 16"));
}

}  // namespace
}  // namespace babai
