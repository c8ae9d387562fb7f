// AVX2 with FMA and F16C: two registers hold the 16 lanes, integer products go by 8 rows. Included
// by kernels_avx2.cc alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {

struct Avx2 {
  struct F {
    __m256 lo, hi;
  };
  static constexpr int kTileRows = 4;  // 4 x 2 registers cover the latency of two FMA units
  static constexpr int kTilePanels = 1;

  static F Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F Set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F Load(const Half* p) { return {Half8(p), Half8(p + 8)}; }
  static F Load(const Bf16* p) { return {Bf16x8(p), Bf16x8(p + 8)}; }
  static F LoadN(const float* p, int n) {
    float lanes[16] = {};
    for (int i = 0; i < n; ++i) lanes[i] = p[i];
    return Load(lanes);
  }
  static void Store(float* p, F v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }
  static void StoreN(float* p, F v, int n) {
    if (n == 16) return Store(p, v);
    float lanes[16];
    Store(lanes, v);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }
  static void Store(Half* p, F v) {
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.lo, kRound));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.hi, kRound));
  }

  static F Add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F Sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F Mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F Div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F Fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  // b if either is a NaN, as the instruction does.
  static F Min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static F Max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static F Round(F a) {
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kRound), _mm256_round_ps(a.hi, kRound)};
  }
  static F SelectLess(F a, F b, F yes, F no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
  }
  // 2^n for integral n in [-126, 127].
  static F Pow2(F n) { return {Pow2x8(n.lo), Pow2x8(n.hi)}; }
  static float ReduceAdd(F a) {
    const __m256 s = _mm256_add_ps(a.lo, a.hi);
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  static float ReduceMax(F a) {
    const __m256 s = _mm256_max_ps(a.lo, a.hi);
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
  }
  // Byte j of each of 16 4-byte words, as a number.
  static F ByteLanes(const uint8_t* line, int j) {
    return {ByteLanes8(line, j), ByteLanes8(line + 32, j)};
  }
  static F BytesToF(const uint8_t* p) { return {Bytes8(p), Bytes8(p + 8)}; }

  // See Avx512: the same bits.
  static int32_t QuantizeGroup(const float* x, int8_t* q, float* scale) {
    const __m256 v[4] = {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16),
                         _mm256_loadu_ps(x + 24)};
    float absmax = AbsMax(v);
    if (absmax < kTinyGroup) absmax = 0;
    const __m256 inverse = _mm256_set1_ps(absmax == 0 ? 0.0f : 127.0f / absmax);
    __m256i r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(r[0], r[1]), _mm256_packs_epi32(r[2], r[3]));
    // The packs work in 128-bit halves; this puts the words back in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(bytes, order));
    *scale = absmax / 127.0f;
    const __m256i sum =
        _mm256_add_epi32(_mm256_add_epi32(r[0], r[1]), _mm256_add_epi32(r[2], r[3]));
    const __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    const __m128i two = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    // Unsigned: NaNs became the least integer, whose negation overflows.
    return static_cast<int32_t>(0u - static_cast<uint32_t>(_mm_cvtsi128_si32(
                                         _mm_add_epi32(two, _mm_shuffle_epi32(two, 1)))));
  }
  static constexpr float kTinyGroup = 1e-30f;

  // --- int8 products, 8 rows at a time
  static constexpr int kIntLanes = 8;
  static constexpr int kIntTokens = 4;
  using I = __m256i;
  using W = __m256i;  // half a line: 8 rows x 4 columns; 8-bit codes less 128
  using V = __m256;

  template <int kBits, int kHalf>
  static void Unpack(const uint8_t* block, int lane, W (&w)[8]) {
    block += 4 * lane;
    if constexpr (kBits == 8) {
      const W to_signed = _mm256_set1_epi8(-128);
      for (int i = 0; i < 8; ++i) {
        w[i] = _mm256_xor_si256(LoadLine(block + 64 * (8 * kHalf + i)), to_signed);
      }
    } else if constexpr (kBits == 4) {
      for (int i = 0; i < 8; ++i) w[i] = Field<4 * kHalf, 15>(LoadLine(block + 64 * i));
    } else {
      Unpack2<kHalf>(block, w);
      if constexpr (kBits == 3) AddHighBits<kHalf>(block + 256, w);
    }
  }
  template <int kBits, bool kAsym>
  static I Init(W zeros, int32_t neg_sum) {
    // Zeros are 16-bit values in 32-bit lanes: the upper half of the product must be nothing.
    if constexpr (kAsym) return _mm256_madd_epi16(zeros, _mm256_set1_epi32(neg_sum & 0xffff));
    if constexpr (kBits == 8) return _mm256_setzero_si256();
    return _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), kBits - 1);
  }
  template <int kBits>
  static I Dot(const W (&w)[8], const int8_t* x, I sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (kBits == 8) {
      // |w| unsigned times x with w's sign: at most 2 * 128 * 127 = 32512 a pair, no saturation.
      for (int i = 0; i < 8; ++i) {
        const __m256i signed_x = _mm256_sign_epi8(Four(x + 4 * i), w[i]);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), signed_x);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
      return sum;
    }
    // 16 products of at most 15 * 127 are 30480: the eight lines add up in 16 bits.
    __m256i pairs = _mm256_maddubs_epi16(w[0], Four(x));
    for (int i = 1; i < 8; ++i) {
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i], Four(x + 4 * i)));
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
  }
  template <int kBits>
  static W LoadZeros(const uint8_t* p) {
    const W zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return kBits == 8 ? _mm256_sub_epi32(zeros, _mm256_set1_epi32(128)) : zeros;
  }
  static V LoadScales(const uint16_t* p) { return Half8(reinterpret_cast<const Half*>(p)); }
  static V ToV(I a) { return _mm256_cvtepi32_ps(a); }
  static V ZeroV() { return _mm256_setzero_ps(); }
  static V SetV(float v) { return _mm256_set1_ps(v); }
  static V FmaV(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static void StoreV(float* p, V v) { _mm256_storeu_ps(p, v); }

 private:
  static __m256 Half8(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static __m256 Bf16x8(const Bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m256 Pow2x8(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static __m256 ByteLanes8(const uint8_t* line, int j) {
    const __m256i words = _mm256_srli_epi32(LoadLine(line), 8 * j);
    return _mm256_cvtepi32_ps(_mm256_and_si256(words, _mm256_set1_epi32(255)));
  }
  static __m256 Bytes8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static float AbsMax(const __m256 (&v)[4]) {
    const __m256i sign_off = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_and_si256(_mm256_castps_si256(v[0]), sign_off);
    for (int i = 1; i < 4; ++i) {
      m = _mm256_max_epi32(m, _mm256_and_si256(_mm256_castps_si256(v[i]), sign_off));
    }
    const __m128i half = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    const __m128i two = _mm_max_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
  }
  static __m256i LoadLine(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i Four(const int8_t* x) {
    int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  template <int kShift, int kMask>
  static W Field(W line) {
    if constexpr (kShift != 0) line = _mm256_srli_epi16(line, kShift);
    return _mm256_and_si256(line, _mm256_set1_epi8(kMask));
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
      const W bits = kHalf ? _mm256_srli_epi16(line, 4) : line;
      w[0 + i] = OrFour(w[0 + i], _mm256_slli_epi16(bits, 2));
      w[2 + i] = OrFour(w[2 + i], _mm256_slli_epi16(bits, 1));
      w[4 + i] = OrFour(w[4 + i], bits);
      w[6 + i] = OrFour(w[6 + i], _mm256_srli_epi16(bits, 1));
    }
  }
  static W OrFour(W a, W b) { return _mm256_or_si256(a, _mm256_and_si256(b, _mm256_set1_epi8(4))); }
};

}  // namespace babai::cpu
