// The 16-bit floats of weights and scales, one value at a time: portable definitions of the exact
// conversions. Kernels use the processor's own instructions and are tested against these.
//
//   fp16  IEEE 754 binary16: 1 sign, 5 exponent, 10 mantissa bits
//   bf16  the upper half of an IEEE 754 binary32
//
// Widening is exact. Narrowing rounds to nearest, ties to even; too large becomes infinity; a NaN
// stays a NaN (quiet).
#pragma once

#include <bit>
#include <cstdint>

namespace babai {

// How the numbers of a dense buffer are stored.
enum class FloatType : uint8_t { kF32, kF16, kBf16 };

constexpr int64_t FloatTypeBytes(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

constexpr float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

constexpr uint16_t FloatToBf16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x0040u);
  const uint32_t half_ulp_less_tie = 0x7fffu + ((u >> 16) & 1u);
  return static_cast<uint16_t>((u + half_ulp_less_tie) >> 16);
}

constexpr bool HalfIsFinite(uint16_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

constexpr float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in fp32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x00400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

constexpr uint16_t FloatToHalf(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to >= 2^16
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result counts steps of 2^-24. Adding 0.5 makes fp32 round at that very bit.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t half_ulp_less_tie = 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + half_ulp_less_tie) >> 13));
}

}  // namespace babai
