// Plain C++ for any processor: sixteen lanes are an array. Also the readable definition of what
// each operation of the other two means. Included by kernels_scalar.cc alone.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "kernels/formats/float16.h"

namespace babai::cpu {

struct Scalar {
  struct F {
    float v[16];
  };
  static constexpr int kTileRows = 4;
  static constexpr int kTilePanels = 1;

  template <class Fn>
  static F Each(Fn fn) {
    F out;
    for (int i = 0; i < 16; ++i) out.v[i] = fn(i);
    return out;
  }
  static F Zero() { return Set1(0); }
  static F Set1(float v) {
    return Each([&](int) { return v; });
  }
  static F Load(const float* p) {
    return Each([&](int i) { return p[i]; });
  }
  static F Load(const Half* p) {
    return Each([&](int i) { return HalfToFloat(p[i].bits); });
  }
  static F Load(const Bf16* p) {
    return Each([&](int i) { return Bf16ToFloat(p[i].bits); });
  }
  static F LoadN(const float* p, int n) {
    return Each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void Store(float* p, F v) { StoreN(p, v, 16); }
  static void StoreN(float* p, F v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v.v[i];
  }
  static void Store(Half* p, F v) {
    for (int i = 0; i < 16; ++i) p[i].bits = FloatToHalf(v.v[i]);
  }

  static F Add(F a, F b) {
    return Each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F Sub(F a, F b) {
    return Each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F Mul(F a, F b) {
    return Each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F Div(F a, F b) {
    return Each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F Fma(F a, F b, F c) {
    return Each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F Min(F a, F b) {  // b if either is a NaN
    return Each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Max(F a, F b) {  // likewise
    return Each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F Round(F a) {
    return Each([&](int i) { return std::nearbyintf(a.v[i]); });
  }
  static F SelectLess(F a, F b, F yes, F no) {
    return Each([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
  }
  // 2^n for integral n in [-126, 127]; some power for a NaN, whose product is a NaN anyway.
  static F Pow2(F n) {
    return Each([&](int i) {
      const float e = n.v[i] >= -126.0f && n.v[i] <= 127.0f ? n.v[i] : 0.0f;
      return std::bit_cast<float>(static_cast<uint32_t>(static_cast<int32_t>(e) + 127) << 23);
    });
  }
  static float ReduceAdd(F a) {
    float sum = 0;
    for (float lane : a.v) sum += lane;
    return sum;
  }
  static float ReduceMax(F a) {
    float max = a.v[0];
    for (float lane : a.v) max = lane > max ? lane : max;
    return max;
  }
  static F ByteLanes(const uint8_t* line, int j) {
    return Each([&](int i) { return static_cast<float>(line[4 * i + j]); });
  }
  static F BytesToF(const uint8_t* p) {
    return Each([&](int i) { return static_cast<float>(p[i]); });
  }

  // 32 values to int8 with one scale; returns minus their sum. Bits of |x| compare like integers
  // and a NaN compares largest, so a NaN or infinity ends up in the scale.
  static int32_t QuantizeGroup(const float* x, int8_t* q, float* scale) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) {
      const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
      bits = magnitude > bits ? magnitude : bits;
    }
    float absmax = std::bit_cast<float>(bits);
    if (absmax < kTinyGroup) absmax = 0;
    const float inverse = absmax == 0 ? 0.0f : 127.0f / absmax;
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
      const float rounded = std::nearbyintf(x[i] * inverse);
      q[i] = rounded >= -127.0f && rounded <= 127.0f ? static_cast<int8_t>(rounded) : -128;
      sum += q[i];
    }
    *scale = absmax / 127.0f;
    return -sum;
  }
  // Below this 127 / absmax overflows; such a group counts as zeros.
  static constexpr float kTinyGroup = 1e-30f;

  // --- int8 products
  static constexpr int kIntLanes = 16;
  static constexpr int kIntTokens = 4;
  struct I {
    int32_t v[16];
  };
  struct W {
    uint8_t b[64];  // a line: 16 rows x 4 columns; or 16 zeros
  };
  using V = F;

  template <int kBits, int kHalf>
  static void Unpack(const uint8_t* block, int, W (&w)[8]) {
    for (int i = 0; i < 8; ++i) {
      const int line = 8 * kHalf + i;
      for (int j = 0; j < 64; ++j) w[i].b[j] = CodeOf<kBits>(block, line, j);
    }
  }
  template <int kBits, bool kAsym>
  static I Init(const W& zeros, int32_t neg_sum) {
    I init;
    for (int i = 0; i < 16; ++i) {
      init.v[i] = neg_sum * (kAsym ? int32_t{zeros.b[i]} : int32_t{1} << (kBits - 1));
    }
    return init;
  }
  template <int kBits>
  static I Dot(const W (&w)[8], const int8_t* x, I sum) {
    for (int line = 0; line < 8; ++line) {
      for (int j = 0; j < 64; ++j) {
        sum.v[j / 4] += int32_t{w[line].b[j]} * int32_t{x[4 * line + j % 4]};
      }
    }
    return sum;
  }
  template <int kBits>
  static W LoadZeros(const uint8_t* p) {
    W zeros{};
    std::memcpy(zeros.b, p, 16);
    return zeros;
  }
  static V LoadScales(const uint16_t* p) {
    return Each([&](int i) { return HalfToFloat(p[i]); });
  }
  static V ToV(const I& a) {
    return Each([&](int i) { return static_cast<float>(a.v[i]); });
  }
  static V ZeroV() { return Zero(); }
  static V SetV(float v) { return Set1(v); }
  // Fused, unlike Fma(): the integer product promises the same bits everywhere.
  static V FmaV(V a, V b, V c) {
    return Each([&](int i) { return std::fmaf(a.v[i], b.v[i], c.v[i]); });
  }
  static void StoreV(float* p, V v) { Store(p, v); }

 private:
  // Byte j of line `line` of an unpacked block, as matmul.h defines the layout.
  template <int kBits>
  static uint8_t CodeOf(const uint8_t* block, int line, int j) {
    if constexpr (kBits == 8) return block[64 * line + j];
    if constexpr (kBits == 4) return (block[64 * (line % 8) + j] >> (line / 8 * 4)) & 15;
    const uint8_t low = (block[64 * (line % 4) + j] >> (line / 4 * 2)) & 3;
    if constexpr (kBits == 2) return low;
    const uint8_t high = (block[256 + 64 * (line % 2) + j] >> (line / 2)) & 1;
    return static_cast<uint8_t>(low | high << 2);
  }
};

}  // namespace babai::cpu
