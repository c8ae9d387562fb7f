#include "server/model/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "kernels/formats/float16.h"
#include "server/model/element_type.h"

namespace babai {
namespace {

using Block = std::vector<uint8_t>;

float HalfAt(const Block& b, int at) {
  return HalfToFloat(static_cast<uint16_t>(b[at] | b[at + 1] << 8));
}
int Bit(const Block& b, int first_byte, int bit) { return b[first_byte + bit / 8] >> bit % 8 & 1; }
int Nibble(const Block& b, int first_byte, int nibble) {
  return b[first_byte + nibble / 2] >> 4 * (nibble % 2) & 15;
}

// The definitions once more, one weight at a time and bit by bit: slow, and in another shape than
// the decoders. Weight e of a block; each formula follows ggml's documented layout.
float Nibble32(const Block& b, int e, int first) {
  return static_cast<float>(e < 16 ? b[first + e] & 15 : b[first + e - 16] >> 4);
}
float Q4_0(const Block& b, int e) { return HalfAt(b, 0) * (Nibble32(b, e, 2) - 8); }
float Q4_1(const Block& b, int e) { return HalfAt(b, 0) * Nibble32(b, e, 4) + HalfAt(b, 2); }
float Q5_0(const Block& b, int e) {
  return HalfAt(b, 0) * (Nibble32(b, e, 6) + 16.0f * Bit(b, 2, e) - 16);
}
float Q5_1(const Block& b, int e) {
  return HalfAt(b, 0) * (Nibble32(b, e, 8) + 16.0f * Bit(b, 4, e)) + HalfAt(b, 2);
}
float Q8_0(const Block& b, int e) {
  return HalfAt(b, 0) * static_cast<float>(static_cast<int8_t>(b[2 + e]));
}

// Where K types with 2-bit fields keep weight e: byte e % 32 of the half, bit pair (e / 32) % 4.
int TwoBits(const Block& b, int e, int first) {
  return b[first + e / 128 * 32 + e % 32] >> e / 32 % 4 * 2 & 3;
}
float Q2_K(const Block& b, int e) {
  const int scale = b[e / 16] & 15, min = b[e / 16] >> 4;
  return HalfAt(b, 80) * scale * TwoBits(b, e, 16) - HalfAt(b, 82) * min;
}
float Q3_K(const Block& b, int e) {
  const int g = e / 16;
  const int low = Nibble(b, 96, g < 8 ? 2 * g : 2 * (g - 8) + 1);
  const int high =
      (Bit(b, 104, g % 4 * 8 + g / 4 * 2 + 1) << 1) | Bit(b, 104, g % 4 * 8 + g / 4 * 2);
  const int scale = low + 16 * high - 32;
  const int missing = Bit(b, 0, e % 32 * 8 + e / 32) ? 0 : 4;  // a set bit means: do not subtract
  return HalfAt(b, 108) * static_cast<float>(scale) *
         static_cast<float>(TwoBits(b, e, 32) - missing);
}
struct Pair {
  int scale, min;
};
Pair Packed6(const Block& b, int g) {  // twelve bytes from byte 4
  const auto s = [&](int i) { return int{b[4 + i]}; };
  if (g < 4) return {s(g) % 64, s(g + 4) % 64};
  return {s(g + 4) % 16 + s(g - 4) / 64 * 16, s(g + 4) / 16 + s(g) / 64 * 16};
}
int FourBits(const Block& b, int e, int first) {
  const int byte = b[first + e / 64 * 32 + e % 32];
  return e / 32 % 2 == 0 ? byte & 15 : byte >> 4;
}
float Q4_K(const Block& b, int e) {
  const Pair p = Packed6(b, e / 32);
  return HalfAt(b, 0) * p.scale * FourBits(b, e, 16) - HalfAt(b, 2) * p.min;
}
float Q5_K(const Block& b, int e) {
  const Pair p = Packed6(b, e / 32);
  const int q = FourBits(b, e, 48) + 16 * Bit(b, 16 + e % 32, e / 32);
  return HalfAt(b, 0) * p.scale * q - HalfAt(b, 2) * p.min;
}
float Q6_K(const Block& b, int e) {
  const int half = e / 128, l = e % 32, run = e / 32 % 4;
  const int low_byte = b[half * 64 + run % 2 * 32 + l];
  const int low = run < 2 ? low_byte % 16 : low_byte / 16;
  const int high = b[128 + half * 32 + l] >> 2 * run & 3;
  const auto scale = static_cast<float>(static_cast<int8_t>(b[192 + e / 16]));
  return HalfAt(b, 208) * scale * static_cast<float>(low + 16 * high - 32);
}

struct Case {
  const char* name;
  uint32_t ggml_id;
  std::function<float(const Block&, int)> definition;
  std::vector<int> half_at;  // where the block's fp16 numbers are, to keep them finite
};

class BlockTypes : public testing::TestWithParam<Case> {};

// Equality to the bit: every product in these formulas is exact, and one rounding remains.
TEST_P(BlockTypes, DecodeEqualsTheDefinition) {
  const Case& test = GetParam();
  const ElementType* type = FindGgmlType(test.ggml_id);
  ASSERT_NE(type, nullptr);
  EXPECT_EQ(type->name, test.name);
  constexpr int kBlocks = 20;
  std::mt19937 bits(7);
  Block stored(type->block_bytes * kBlocks);
  for (uint8_t& byte : stored) byte = static_cast<uint8_t>(bits());
  for (int block = 0; block < kBlocks; ++block) {
    for (const int at : test.half_at) stored[block * type->block_bytes + at + 1] &= 0xbb;
  }
  std::vector<float> out(kBlocks * type->block_elements, std::nanf(""));

  type->decode(stored.data(), kBlocks, out.data());

  for (size_t i = 0; i < out.size(); ++i) {
    const auto first = stored.begin() + i / type->block_elements * type->block_bytes;
    const Block block(first, first + type->block_bytes);
    const int e = static_cast<int>(i % type->block_elements);
    ASSERT_EQ(out[i], test.definition(block, e)) << test.name << " weight " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ggml, BlockTypes,
    testing::Values(Case{"Q4_0", 2, Q4_0, {0}}, Case{"Q4_1", 3, Q4_1, {0, 2}},
                    Case{"Q5_0", 6, Q5_0, {0}}, Case{"Q5_1", 7, Q5_1, {0, 2}},
                    Case{"Q8_0", 8, Q8_0, {0}}, Case{"Q2_K", 10, Q2_K, {80, 82}},
                    Case{"Q3_K", 11, Q3_K, {108}}, Case{"Q4_K", 12, Q4_K, {0, 2}},
                    Case{"Q5_K", 13, Q5_K, {0, 2}}, Case{"Q6_K", 14, Q6_K, {208}}),
    [](const auto& info) { return std::string(info.param.name); });

// A block worked out by hand, so that definition and decoder can not be wrong in the same way.
TEST(Dequantize, Q4_0ByHand) {
  Block block(18, 0x98);             // weights 0..15 are 8, weights 16..31 are 9
  block[0] = 0x00, block[1] = 0x38;  // d = 0.5
  block[2] = 0x0f;                   // weight 0 is 15, weight 16 is 0
  std::vector<float> out(32);
  DecodeQ4_0(block.data(), 1, out.data());
  EXPECT_EQ(out[0], 3.5f);
  EXPECT_EQ(out[1], 0.0f);
  EXPECT_EQ(out[16], -4.0f);
  EXPECT_EQ(out[17], 0.5f);
}

TEST(Dequantize, Q6_KByHand) {
  Block block(210, 0);                   // all codes 0: -32
  block[208] = 0x00, block[209] = 0x3c;  // d = 1
  for (int i = 192; i < 208; ++i) block[i] = 1;
  block[193] = 0xff;  // scale of weights 16..31 is -1
  block[0] = 0x21;    // weight 0: low bits 1; weight 64: low bits 2
  block[128] = 0x13;  // high bits: weight 0 is 3, weight 64 is 1
  std::vector<float> out(256);
  DecodeQ6_K(block.data(), 1, out.data());
  EXPECT_EQ(out[0], 1 + 48 - 32);
  EXPECT_EQ(out[64], 2 + 16 - 32);
  EXPECT_EQ(out[1], -32);
  EXPECT_EQ(out[16], 32);
}

TEST(Dequantize, PlainTypesKeepEveryValue) {
  const float values[] = {0.0f, -1.5f, 65504.0f, 0x1p-24f};
  for (const float value : values) {
    float out = std::nanf("");
    DecodeF32(reinterpret_cast<const uint8_t*>(&value), 1, &out);
    EXPECT_EQ(out, value);
    const uint16_t half = FloatToHalf(value), bf16 = FloatToBf16(value);
    DecodeF16(reinterpret_cast<const uint8_t*>(&half), 1, &out);
    EXPECT_EQ(out, value);  // each is an fp16 number
    DecodeBF16(reinterpret_cast<const uint8_t*>(&bf16), 1, &out);
    EXPECT_EQ(out, Bf16ToFloat(bf16));
  }
}

TEST(ElementType, NamesWhatItCanNotRead) {
  ASSERT_NE(FindGgmlType(23), nullptr);
  EXPECT_EQ(FindGgmlType(23)->name, "IQ4_XS");
  EXPECT_EQ(FindGgmlType(23)->decode, nullptr);
  EXPECT_EQ(FindGgmlType(4), nullptr);
  EXPECT_EQ(FindGgmlType(0xffffffff), nullptr);
  EXPECT_EQ(FindSafetensorsType("F8_E4M3")->decode, nullptr);
  EXPECT_EQ(FindSafetensorsType("bf16"), nullptr);
}

}  // namespace
}  // namespace babai
