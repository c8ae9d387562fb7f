// From the words of packed_layout.h to tensor-core operands, with next to no arithmetic.
//
// fp16: a field masked in place, w & 0x000f000f, *is* a pair of fp16 numbers: subnormals, code *
// 2^-24, which the tensor core multiplies exactly. The field of row g + 8 lies some bits higher, so
// it comes out kRow8 times larger. Both factors are constant along a row: the caller divides the
// row's sum by them once. bf16 has no range for that (its subnormals times x underflow fp32), so a
// field is set into the mantissa of 128 instead: 128 + code, exact in bf16.
//
// What a fragment holds for code q of row g (r = 1) or g + 8 (r = kRow8):  kUnit * (kBias + r * q).
// The sum over a group with zero point z is therefore
//   sum (q - z) x  =  (sum fragment * x - kUnit * (kBias + r * z) * sum x) / (kUnit * r):
// the subtracted term is what the accumulator starts from, instead of 0, so it costs nothing.
#pragma once

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/ptx.cuh"

namespace babai::cuda {

// A pair of minus `v`, a whole number below 256, in units of a fragment; bf16's is none or at least
// 128.
constexpr uint32_t MinusPair(bool half, float v) {
  const uint32_t whole = static_cast<uint32_t>(v);
  return (half ? 0x8000 | whole : whole == 0 ? 0 : 0xc300 | (whole - 128)) * 0x10001u;
}

template <int kBits, typename T>
struct Fragment {
  static constexpr bool kHalf = __is_same(T, __half);
  static constexpr float kUnit = kHalf ? 0x1p-24f : 1.0f;
  static constexpr float kBias = kHalf ? 0.0f : kBits == 8 ? -128.0f : 128.0f;
  static constexpr float kRow8 = kBits == 2            ? 4.0f
                                 : kBits == 3          ? 8.0f
                                 : kBits == 4 && kHalf ? 16.0f
                                                       : 1.0f;
  static constexpr uint32_t kExponent = kHalf ? 0 : 0x43004300;  // of 128
  static constexpr float kSymmetricZero = static_cast<float>(1 << (kBits - 1));

  // Pairs of what a fragment would hold for minus the symmetric zero point: times x, what a sum
  // starts from.
  static constexpr uint32_t kMinusZero = MinusPair(kHalf, kBias + kSymmetricZero);
  static constexpr uint32_t kMinusZero8 = MinusPair(kHalf, kBias + kRow8 * kSymmetricZero);
};

// The words of one half tile for this lane.
template <int kBits>
__device__ __forceinline__ void LoadWords(uint32_t (&w)[kBits], const uint8_t* half, int lane) {
  if constexpr (kBits == 8) {
    const uint4 a = *reinterpret_cast<const uint4*>(half + lane * 16);
    const uint4 b = *reinterpret_cast<const uint4*>(half + 512 + lane * 16);
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  } else if constexpr (kBits == 4) {
    const uint4 a = *reinterpret_cast<const uint4*>(half + lane * 16);
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
  } else {
    const uint2 a = *reinterpret_cast<const uint2*>(half + lane * 8);
    w[0] = a.x, w[1] = a.y;
    if constexpr (kBits == 3) w[2] = *reinterpret_cast<const uint32_t*>(half + 256 + lane * 4);
  }
}

// A pair whose field, kBits wide, starts at bit kBit of both halves of w, below `exponent`.
template <int kBits, int kBit>
__device__ __forceinline__ uint32_t Pair(uint32_t w, uint32_t exponent) {
  constexpr uint32_t kMask = ((1u << kBits) - 1) << kBit;
  return (w & (kMask | kMask << 16)) | exponent;
}

// Eight bits do not fit bf16's mantissa beside a leading one: through fp32, (2^23 + q) - (2^23 +
// 128) is exact and so is its upper half. Takes bytes kByte and kByte + 2.
template <int kByte>
__device__ __forceinline__ uint32_t BytesToBf16(uint32_t w) {
  const float lo = __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7650 | kByte)) - 8388736.0f;
  const float hi = __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7650 | (kByte + 2))) - 8388736.0f;
  return __byte_perm(__float_as_uint(lo), __float_as_uint(hi), 0x7632);
}

// The A fragment of 16-column step kStep: a[0] row g, a[1] row g + 8, a[2] and a[3] 8 columns on.
// exponent: of both halves of a pair, 0 for subnormals; better a kernel's parameter than a
// constant, since an instruction has no room for two of these.
template <int kBits, typename T, int kStep>
__device__ __forceinline__ void Dequantize(uint32_t (&a)[4], const uint32_t (&w)[kBits],
                                           uint32_t exponent) {
  if constexpr (kBits == 8) {
    const uint32_t left = w[2 * kStep], right = w[2 * kStep + 1];
    if constexpr (__is_same(T, __half)) {
      constexpr uint32_t kOddBytes = 0x7351;  // of the word, each below one of the exponent
      a[0] = Pair<8, 0>(left, exponent), a[1] = __byte_perm(left, exponent, kOddBytes);
      a[2] = Pair<8, 0>(right, exponent), a[3] = __byte_perm(right, exponent, kOddBytes);
    } else {
      a[0] = BytesToBf16<0>(left), a[1] = BytesToBf16<1>(left);
      a[2] = BytesToBf16<0>(right), a[3] = BytesToBf16<1>(right);
    }
  } else if constexpr (kBits == 4) {
    const uint32_t word = w[kStep], upper = word >> 8;
    // bf16's mantissa ends at bit 6: row g + 8 has to be shifted down there.
    constexpr bool kInPlace = __is_same(T, __half);
    a[0] = Pair<4, 0>(word, exponent), a[2] = Pair<4, 0>(upper, exponent);
    a[1] = kInPlace ? Pair<4, 4>(word, exponent) : Pair<4, 0>(word >> 4, exponent);
    a[3] = kInPlace ? Pair<4, 4>(upper, exponent) : Pair<4, 0>(word >> 12, exponent);
  } else if constexpr (kBits == 2) {
    const uint32_t word = kStep % 2 == 0 ? w[kStep / 2] : w[kStep / 2] >> 8;
    const uint32_t upper = w[kStep / 2] >> (kStep % 2 == 0 ? 4 : 12);
    a[0] = Pair<2, 0>(word, exponent), a[1] = Pair<2, 2>(word, exponent);
    a[2] = Pair<2, 0>(upper, exponent), a[3] = Pair<2, 2>(upper, exponent);
  } else if constexpr (kStep < 3) {
    const uint32_t upper = w[kStep] >> 6;
    a[0] = Pair<3, 0>(w[kStep], exponent), a[1] = Pair<3, 3>(w[kStep], exponent);
    a[2] = Pair<3, 0>(upper, exponent), a[3] = Pair<3, 3>(upper, exponent);
  } else {
    const uint32_t top0 =
        w[0] >> 12;  // bits 12..14 are a pair, bit 15 is bit 0 of the scattered one
    const uint32_t scattered =
        (top0 & 0x00080008u) | ((w[1] >> 11) & 0x00100010u) | ((w[2] >> 10) & 0x00200020u);
    a[0] = Pair<3, 0>(top0, exponent), a[1] = Pair<3, 3>(w[2] >> 9, exponent);
    a[2] = Pair<3, 0>(w[1] >> 12, exponent), a[3] = Pair<3, 3>(scattered, exponent);
  }
}

// The same, or with kMixed, 4 bits in fp16, with four instructions for eight weights instead of
// five: row g + 8's fragment, kRow8 * code, keeps row g's code, so that its sums are too large by
// row g's.
template <int kBits, typename T, int kStep, bool kMixed>
__device__ __forceinline__ void DequantizeForSums(uint32_t (&a)[4], const uint32_t (&w)[kBits],
                                                  uint32_t exponent) {
  if constexpr (kMixed) {
    constexpr uint32_t kUpperBytes = 0x4341;  // of both halves of a word
    a[1] = w[kStep] & 0x00ff00ffu, a[3] = __byte_perm(w[kStep], 0, kUpperBytes);
    a[0] = a[1] & 0x000f000fu, a[2] = a[3] & 0x000f000fu;
  } else {
    Dequantize<kBits, T, kStep>(a, w, exponent);
  }
}

}  // namespace babai::cuda
