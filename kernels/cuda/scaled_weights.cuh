// Weights scaled, from the fragments of dequant.cuh, for products that keep one accumulator over
// all groups.
#pragma once

#include "kernels/cuda/dequant.cuh"

namespace babai::cuda {

template <typename T>
struct PairOf {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

// One row of a group: what turns a pair of a fragment, kBias + kRow * code, into
// scale * (code - zero).
template <typename T, int kRow, int kBias>
struct RowScale {
  using Pair = typename PairOf<T>::Type;
  Pair offset, scale, rest;  // scale + rest: bf16 has too few bits for a scale of fp16

  // -(kBias / kRow + zero), exact in T.
  __device__ __forceinline__ void SetZero(uint32_t zero) {
    if constexpr (__is_same(T, __half)) {
      // A power of two plus an integer: the bits of both, side by side.
      constexpr int kShift = kRow == 16 ? 4 : kRow == 8 ? 3 : kRow == 4 ? 2 : 0;
      const uint32_t bits = (0xe400 - (kShift << 10)) + (zero << kShift), twice = bits * 0x10001;
      __builtin_memcpy(&offset, &twice, 4);
    } else {
      offset = __float2bfloat162_rn(static_cast<float>(-(kBias / kRow) - static_cast<int>(zero)));
    }
  }
  __device__ __forceinline__ void SetScale(__half s) {
    if constexpr (__is_same(T, __half)) {
      scale = __half2half2(s);
    } else {
      const float exact = __half2float(s);
      const __nv_bfloat16 upper = __float2bfloat16_rn(exact);
      scale = __bfloat162bfloat162(upper);
      rest = __float2bfloat162_rn(exact - __bfloat162float(upper));
    }
  }
  // code - zero is exact; the product is rounded once (bf16: nearly always as if once).
  __device__ __forceinline__ uint32_t Apply(uint32_t bits) const {
    Pair v;
    __builtin_memcpy(&v, &bits, 4);
    if constexpr (kRow == 1) {
      v = __hadd2(v, offset);
    } else if constexpr (__is_same(T, __half)) {
      v = __hfma2(v, __float2half2_rn(1.0f / kRow), offset);
    } else {
      v = __hfma2(v, __float2bfloat162_rn(1.0f / kRow), offset);
    }
    if constexpr (__is_same(T, __half)) {
      v = __hmul2(v, scale);
    } else {
      v = __hfma2(v, scale, __hmul2(v, rest));
    }
    __builtin_memcpy(&bits, &v, 4);
    return bits;
  }
};

// The two rows of a lane.
template <int kBits, typename T>
struct GroupScale {
  using F = Fragment<kBits, T>;
  // fp16 fragments get the exponent of 1024, whose last mantissa bit is worth one.
  static constexpr int kBias = F::kHalf ? 1024 : static_cast<int>(F::kBias);
  static constexpr uint32_t kExponent = F::kHalf ? 0x64006400 : F::kExponent;
  RowScale<T, 1, kBias> row;
  RowScale<T, static_cast<int>(F::kRow8), kBias> row8;

  __device__ __forceinline__ void SetScales(__half2 scales) {
    row.SetScale(__low2half(scales)), row8.SetScale(__high2half(scales));
  }
  __device__ __forceinline__ void SetZeros(uint32_t zero, uint32_t zero8) {
    row.SetZero(zero), row8.SetZero(zero8);
  }
  // The A fragment of step kStep: the weights themselves, rounded to T. `exponent`: kExponent.
  template <int kStep>
  __device__ __forceinline__ void Dequantized(uint32_t (&a)[4], const uint32_t (&w)[kBits],
                                              uint32_t exponent) const {
    Dequantize<kBits, T, kStep>(a, w, exponent);
    a[0] = row.Apply(a[0]), a[1] = row8.Apply(a[1]);
    a[2] = row.Apply(a[2]), a[3] = row8.Apply(a[3]);
  }
};

// The same for symmetric weights in fp16, with one operation for a pair instead of two. A fragment
// holds subnormals, kUnit * r * code: scales come multiplied by 1 / (kUnit * r), and, since fp16
// ends at 2^16, by a power of two that brings a matrix's largest just below 2^-8. Sums are to be
// divided by it. A weight is rounded once, as above, to steps of at least 2^-24: in a group whose
// scale is 2^-j of the largest an error of 2^(j - 16) times the scale at most.
template <int kBits>
struct NormedScale {
  using F = Fragment<kBits, __half>;
  __half2 scale, scale8, offset, offset8;

  __device__ __forceinline__ void SetScales(__half2 normed) {
    scale = __low2half2(normed), scale8 = __high2half2(normed);
    uint32_t zeros = __byte_perm(F::kMinusZero, F::kMinusZero8, 0x5410);
    __half2 minus_zeros;
    __builtin_memcpy(&minus_zeros, &zeros, 4);
    const __half2 offsets = __hmul2(normed, minus_zeros);  // exact: a power of two
    offset = __low2half2(offsets), offset8 = __high2half2(offsets);
  }
  __device__ __forceinline__ void SetZeros(uint32_t, uint32_t) {}
  static __device__ __forceinline__ uint32_t Apply(uint32_t bits, __half2 scale, __half2 offset) {
    __half2 v;
    __builtin_memcpy(&v, &bits, 4);
    v = __hfma2(v, scale, offset);
    __builtin_memcpy(&bits, &v, 4);
    return bits;
  }
  template <int kStep>
  __device__ __forceinline__ void Dequantized(uint32_t (&a)[4], const uint32_t (&w)[kBits],
                                              uint32_t) const {
    Dequantize<kBits, __half, kStep>(a, w, F::kExponent);
    a[0] = Apply(a[0], scale, offset), a[1] = Apply(a[1], scale8, offset8);
    a[2] = Apply(a[2], scale, offset), a[3] = Apply(a[3], scale8, offset8);
  }
};

template <int kBits, typename T, bool kNormed>
struct ScaleOf {
  using Type = GroupScale<kBits, T>;
};
template <int kBits>
struct ScaleOf<kBits, __half, true> {
  using Type = NormedScale<kBits>;
};

}  // namespace babai::cuda
