#include "kernels/formats/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace babai {
namespace {

// The definition, by arithmetic: sign * mantissa * 2^exponent.
double HalfValue(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Float16Test, EveryHalfWidensToItsValueAndBack) {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const double want = HalfValue(bits);
    const float got = HalfToFloat(bits);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << i;
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(got)))) << i;
      continue;
    }
    EXPECT_EQ(got, want) << i;
    EXPECT_EQ(FloatToHalf(got), bits) << i;
  }
}

// Halfway between neighbours goes to the even one; a hair beside it goes to the nearer one.
TEST(Float16Test, NarrowingRoundsToNearestEven) {
  for (int i = 0; i < 0x7bff; ++i) {
    const auto below = static_cast<uint16_t>(i), above = static_cast<uint16_t>(i + 1);
    const float middle = static_cast<float>((HalfValue(below) + HalfValue(above)) / 2);
    EXPECT_EQ(FloatToHalf(middle), i % 2 == 0 ? below : above) << i;
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), below) << i;
    EXPECT_EQ(FloatToHalf(std::nextafter(middle, INFINITY)), above) << i;
    EXPECT_EQ(FloatToHalf(-middle), FloatToHalf(middle) | 0x8000) << i;
  }
}

TEST(Float16Test, TooLargeBecomesInfinity) {
  EXPECT_EQ(FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::max()), 0x7c00);
  EXPECT_EQ(FloatToHalf(-INFINITY), 0xfc00);
  EXPECT_EQ(FloatToHalf(1e-30f), 0);
}

TEST(Float16Test, Bf16IsTheUpperHalfRoundedToNearestEven) {
  EXPECT_EQ(Bf16ToFloat(0x3f80), 1.0f);
  EXPECT_EQ(FloatToBf16(1.00390625f), 0x3f80);  // 1 + 2^-8: halfway, even below
  EXPECT_EQ(FloatToBf16(1.01171875f), 0x3f82);  // 1 + 3 * 2^-8: halfway, even above
  EXPECT_EQ(FloatToBf16(1.00390637f), 0x3f81);  // just above halfway
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::nanf("")))));
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float value = Bf16ToFloat(bits);
    if (std::isnan(value)) continue;
    EXPECT_EQ(FloatToBf16(value), bits) << i;
  }
}

}  // namespace
}  // namespace babai
