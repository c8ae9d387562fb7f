// Row-wise operations for any instruction set S. A row's short end is padded in a register, so that
// every element takes the same path wherever it stands. Included by kernels_*.cc alone.
#pragma once

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {

template <class S>
struct RowTile {
  using F = typename S::F;

  // e^x within 2 units in the last place; 0 below -87.3, finite above 88.7 (the largest there is),
  // a NaN stays one. x = n ln 2 + r, |r| <= 0.35; e^r by its Taylor polynomial, whose next term is
  // r^8 / 8! < 6e-9; ln 2 in two parts keeps r exact (Cody and Waite 1980).
  static F Exp(F x) {
    const F lowest = S::Set1(-87.33f), highest = S::Set1(88.37f);
    const F clamped = S::Min(highest, S::Max(lowest, x));
    const F n = S::Round(S::Mul(clamped, S::Set1(1.44269504f)));
    F r = S::Fma(n, S::Set1(-0.693359375f), clamped);
    r = S::Fma(n, S::Set1(2.12194440e-4f), r);
    F p = S::Set1(1.0f / 5040);
    p = S::Fma(p, r, S::Set1(1.0f / 720));
    p = S::Fma(p, r, S::Set1(1.0f / 120));
    p = S::Fma(p, r, S::Set1(1.0f / 24));
    p = S::Fma(p, r, S::Set1(1.0f / 6));
    p = S::Fma(p, r, S::Set1(0.5f));
    p = S::Fma(p, r, S::Set1(1.0f));
    p = S::Fma(p, r, S::Set1(1.0f));
    return S::SelectLess(x, lowest, S::Zero(), S::Mul(p, S::Pow2(n)));
  }
  // 1 - 2 / (e^2x + 1): absolute error of a few 1e-7.
  static F Tanh(F x) {
    const F e = Exp(S::Add(x, x));
    return S::Sub(S::Set1(1), S::Div(S::Set1(2), S::Add(e, S::Set1(1))));
  }

  // Calls step(offset, lanes) along a row; lanes < 16 only at its end.
  template <class Step>
  static void Along(int64_t n, Step step) {
    for (int64_t i = 0; i < n; i += kLanes) {
      step(i, static_cast<int>(n - i < kLanes ? n - i : kLanes));
    }
  }
  static F Get(const float* p, int64_t i, int lanes) {
    return lanes == kLanes ? S::Load(p + i) : S::LoadN(p + i, lanes);
  }
  static F GetOr(const float* p, int64_t i, int lanes, float missing) {
    return p == nullptr ? S::Set1(missing) : Get(p, i, lanes);
  }
  static void Put(float* p, int64_t i, int lanes, F v) {
    if (lanes == kLanes) return S::Store(p + i, v);
    S::StoreN(p + i, v, lanes);
  }

  static void RmsNorm(const float* x, float* y, int64_t n, const float* weight, float offset,
                      float eps) {
    F squares = S::Zero();
    Along(n, [&](int64_t i, int lanes) {
      const F v = Get(x, i, lanes);
      squares = S::Fma(v, v, squares);
    });
    const float mean = S::ReduceAdd(squares) / static_cast<float>(n);
    const F inverse = S::Set1(1.0f / __builtin_sqrtf(mean + eps));
    const F add = S::Set1(weight == nullptr ? 0.0f : offset);
    Along(n, [&](int64_t i, int lanes) {
      const F gain = S::Add(GetOr(weight, i, lanes, 1.0f), add);
      Put(y, i, lanes, S::Mul(S::Mul(Get(x, i, lanes), inverse), gain));
    });
  }

  static void LayerNorm(const float* x, float* y, int64_t n, const float* weight, const float* bias,
                        float eps) {
    F sum = S::Zero();
    Along(n, [&](int64_t i, int lanes) { sum = S::Add(sum, Get(x, i, lanes)); });
    const F mean = S::Set1(S::ReduceAdd(sum) / static_cast<float>(n));
    F squares = S::Zero();
    Along(n, [&](int64_t i, int lanes) {
      float centred[kLanes] = {};
      S::StoreN(centred, S::Sub(Get(x, i, lanes), mean), lanes);  // lanes beyond the row stay 0
      const F v = S::Load(centred);
      squares = S::Fma(v, v, squares);
    });
    const float variance = S::ReduceAdd(squares) / static_cast<float>(n);
    const F inverse = S::Set1(1.0f / __builtin_sqrtf(variance + eps));
    Along(n, [&](int64_t i, int lanes) {
      const F unit = S::Mul(S::Sub(Get(x, i, lanes), mean), inverse);
      Put(y, i, lanes, S::Fma(unit, GetOr(weight, i, lanes, 1.0f), GetOr(bias, i, lanes, 0.0f)));
    });
  }

  static void Rope(float* head, const float* cos, const float* sin, int64_t half) {
    Along(half, [&](int64_t i, int lanes) {
      const F a = Get(head, i, lanes), b = Get(head + half, i, lanes);
      const F c = Get(cos, i, lanes), s = Get(sin, i, lanes);
      Put(head, i, lanes, S::Sub(S::Mul(a, c), S::Mul(b, s)));
      Put(head + half, i, lanes, S::Fma(b, c, S::Mul(a, s)));
    });
  }

  static F Silu(F x) { return S::Div(x, S::Add(S::Set1(1), Exp(S::Sub(S::Zero(), x)))); }
  // Hendrycks and Gimpel 2016, arXiv:1606.08415, the tanh form.
  static F GeluTanh(F x) {
    const F cubic = S::Mul(S::Mul(x, x), S::Set1(0.044715f));
    const F inner = S::Mul(S::Mul(x, S::Set1(0.7978845608f)), S::Add(cubic, S::Set1(1)));
    return S::Mul(S::Mul(x, S::Set1(0.5f)), S::Add(S::Set1(1), Tanh(inner)));
  }
  // The C library's erf, lane by lane: the models that want it are small.
  static F GeluErf(F x) {
    float v[kLanes];
    S::Store(v, x);
    for (float& lane : v) lane = 0.5f * lane * (1.0f + __builtin_erff(lane * 0.70710678f));
    return S::Load(v);
  }
  static F Relu(F x) { return S::SelectLess(x, S::Zero(), S::Zero(), x); }

  template <class Fn>
  static void Map(Fn fn, const float* x, const float* up, float* y, int64_t n) {
    Along(n, [&](int64_t i, int lanes) {
      F v = fn(Get(x, i, lanes));
      if (up != nullptr) v = S::Mul(v, Get(up, i, lanes));
      Put(y, i, lanes, v);
    });
  }
  static void Activate(Activation f, const float* x, const float* up, float* y, int64_t n) {
    switch (f) {
      case Activation::kIdentity:
        return Map([](F v) { return v; }, x, up, y, n);
      case Activation::kSilu:
        return Map([](F v) { return Silu(v); }, x, up, y, n);
      case Activation::kGeluTanh:
        return Map([](F v) { return GeluTanh(v); }, x, up, y, n);
      case Activation::kGeluErf:
        return Map([](F v) { return GeluErf(v); }, x, up, y, n);
      case Activation::kRelu:
        return Map([](F v) { return Relu(v); }, x, up, y, n);
    }
  }

  static void AddTo(float* x, const float* y, int64_t n) {
    Along(n, [&](int64_t i, int lanes) {
      Put(x, i, lanes, S::Add(Get(x, i, lanes), Get(y, i, lanes)));
    });
  }

  static double ExpSum(const float* x, int64_t n, float shift, float scale, float* out) {
    double sum = 0;
    Along(n, [&](int64_t i, int lanes) {
      const F e = Exp(S::Mul(S::Sub(Get(x, i, lanes), S::Set1(shift)), S::Set1(scale)));
      float terms[kLanes] = {};
      S::StoreN(terms, e, lanes);
      sum += S::ReduceAdd(S::Load(terms));
      if (out != nullptr) Put(out, i, lanes, e);
    });
    return sum;
  }

  static void ToHalf(const float* x, uint16_t* out, int64_t n) {
    Along(n, [&](int64_t i, int lanes) {
      Half bits[kLanes];
      S::Store(bits, Get(x, i, lanes));
      for (int lane = 0; lane < lanes; ++lane) out[i + lane] = bits[lane].bits;
    });
  }
};

}  // namespace babai::cpu
