// AVX-512 with VNNI: one register holds the 16 lanes. Included by kernels_avx512.cc alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {

struct Avx512 {
  using F = __m512;
  static constexpr int kTileRows = 8;  // 8 x 2 accumulators cover the multiply-add latency
  static constexpr int kTilePanels = 2;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set1(float v) { return _mm512_set1_ps(v); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F Load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F Load(const Bf16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F LoadN(const float* p, int n) { return _mm512_maskz_loadu_ps(FirstLanes(n), p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void StoreN(float* p, F v, int n) {
    if (n == 16) return Store(p, v);  // masked stores are slow on some processors
    _mm512_mask_storeu_ps(p, FirstLanes(n), v);
  }
  static void Store(Half* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }  // b if either is a NaN
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }  // likewise
  static F Round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F SelectLess(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  // 2^n for integral n in [-126, 127].
  static F Pow2(F n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  static float ReduceAdd(F a) { return _mm512_reduce_add_ps(a); }
  static float ReduceMax(F a) { return _mm512_reduce_max_ps(a); }
  // Byte j of each of 16 4-byte words, as a number.
  static F ByteLanes(const uint8_t* line, int j) {
    const __m512i words = _mm512_srli_epi32(LoadLine(line), 8 * j);
    return _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(255)));
  }
  static F BytesToF(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }

  // 32 values to int8 with one scale; returns minus their sum. Bits of |x| compare like integers
  // and a NaN compares largest, so a NaN or infinity ends up in the scale.
  static int32_t QuantizeGroup(const float* x, int8_t* q, float* scale) {
    const F a = Load(x), b = Load(x + 16);
    const __m512i sign_off = _mm512_set1_epi32(0x7fffffff);
    const __m512i ma = _mm512_and_si512(_mm512_castps_si512(a), sign_off);
    const __m512i mb = _mm512_and_si512(_mm512_castps_si512(b), sign_off);
    const int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(ma, mb));
    float absmax;
    __builtin_memcpy(&absmax, &bits, 4);
    if (absmax < kTinyGroup) absmax = 0;
    const F inverse = Set1(absmax == 0 ? 0.0f : 127.0f / absmax);
    const __m512i qa = _mm512_cvtps_epi32(Mul(a, inverse));
    const __m512i qb = _mm512_cvtps_epi32(Mul(b, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(qa));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtsepi32_epi8(qb));
    *scale = absmax / 127.0f;
    // Unsigned: NaNs became the least integer, whose negation overflows.
    return static_cast<int32_t>(
        0u - static_cast<uint32_t>(_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb))));
  }
  // Below this 127 / absmax overflows; such a group counts as zeros.
  static constexpr float kTinyGroup = 1e-30f;

  // --- int8 products, 16 rows at a time
  static constexpr int kIntLanes = 16;
  static constexpr int kIntTokens = 8;
  using I = __m512i;
  using W = __m512i;  // a line: 16 rows x 4 columns
  using V = __m512;   // a float for each of kIntLanes rows

  template <int kBits, int kHalf>
  static void Unpack(const uint8_t* block, int, W (&w)[8]) {
    if constexpr (kBits == 8) {
      for (int i = 0; i < 8; ++i) w[i] = LoadLine(block + 64 * (8 * kHalf + i));
    } else if constexpr (kBits == 4) {
      for (int i = 0; i < 8; ++i) w[i] = Field<4 * kHalf, 15>(LoadLine(block + 64 * i));
    } else {
      Unpack2<kHalf>(block, w);
      if constexpr (kBits == 3) AddHighBits<kHalf>(block + 256, w);
    }
  }
  template <int kBits, bool kAsym>
  static I Init(W zeros, int32_t neg_sum) {
    const I sum = _mm512_set1_epi32(neg_sum);
    // |sum| <= 32 * 127 fits the low 16 bits; the zeros' high 16 bits are 0.
    if constexpr (kAsym) return _mm512_dpwssd_epi32(_mm512_setzero_si512(), zeros, sum);
    return _mm512_slli_epi32(sum, kBits - 1);
  }
  template <int kBits>
  static I Dot(const W (&w)[8], const int8_t* x, I sum) {
    for (int i = 0; i < 8; ++i) {
      int32_t four;
      __builtin_memcpy(&four, x + 4 * i, 4);
      sum = _mm512_dpbusd_epi32(sum, w[i], _mm512_set1_epi32(four));
    }
    return sum;
  }
  template <int kBits>
  static W LoadZeros(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static V LoadScales(const uint16_t* p) { return Load(reinterpret_cast<const Half*>(p)); }
  static V ToV(I a) { return _mm512_cvtepi32_ps(a); }
  static V ZeroV() { return Zero(); }
  static V SetV(float v) { return Set1(v); }
  static V FmaV(V a, V b, V c) { return Fma(a, b, c); }
  static void StoreV(float* p, V v) { Store(p, v); }

 private:
  static __mmask16 FirstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static __m512i LoadLine(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int kShift, int kMask>
  static W Field(W line) {
    if constexpr (kShift != 0) line = _mm512_srli_epi16(line, kShift);
    return _mm512_and_si512(line, _mm512_set1_epi8(kMask));
  }
  template <int kHalf>
  static void Unpack2(const uint8_t* block, W (&w)[8]) {
    for (int i = 0; i < 4; ++i) {
      const W line = LoadLine(block + 64 * i);
      w[i] = Field<4 * kHalf, 3>(line);
      w[4 + i] = Field<4 * kHalf + 2, 3>(line);
    }
  }
  // Bit 4 * kHalf + b of byte line i is bit 2 of line 2b + i.
  template <int kHalf>
  static void AddHighBits(const uint8_t* plane, W (&w)[8]) {
    for (int i = 0; i < 2; ++i) {
      const W line = LoadLine(plane + 64 * i);
      const W bits = kHalf ? _mm512_srli_epi16(line, 4) : line;
      const W four = _mm512_set1_epi8(4);
      w[0 + i] = OrMasked(w[0 + i], _mm512_slli_epi16(bits, 2), four);
      w[2 + i] = OrMasked(w[2 + i], _mm512_slli_epi16(bits, 1), four);
      w[4 + i] = OrMasked(w[4 + i], bits, four);
      w[6 + i] = OrMasked(w[6 + i], _mm512_srli_epi16(bits, 1), four);
    }
  }
  static W OrMasked(W a, W b, W mask) {
    return _mm512_ternarylogic_epi64(a, b, mask, 0xf8);  // a | (b & mask)
  }
};

}  // namespace babai::cpu
