// The bodies of tile.h, compiled once for each instruction set by tile_*.cc, which define
// BABAI_VECTOR_BYTES. Everything is in an unnamed namespace and nothing but <cstdint> is included:
// code built with AVX-512 must never be the copy that the linker keeps for everybody.
#pragma once

#include <cstdint>

#include "server/quant/tile.h"

namespace babai {
namespace {

inline float RoundToEven(float x) { return __builtin_nearbyintf(x); }
inline double RoundToEven(double x) { return __builtin_nearbyint(x); }

template <typename T>
using Vector [[gnu::vector_size(BABAI_VECTOR_BYTES), gnu::may_alias]] = T;

// Register tile: kSumColumns x kSumVectors accumulators. Two vectors of loads feed eight
// multiply-adds with 16 registers (AVX2, SSE); with 32 (AVX-512) a whole factor block fits.
constexpr int64_t kSumColumns = BABAI_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int64_t kSumVectors = 2;

// sums[c][lane] = sum over rows of l[row][c] * x[row][lane], for the part of the block and of the
// lanes given by the template. Strictly in the order of rows: the same bits whatever the tile.
template <typename T>
inline void SumPart(const T* l, const T* x, int64_t rows, T* sums) {
  constexpr int64_t per_vector = BABAI_VECTOR_BYTES / sizeof(T);
  Vector<T> acc[kSumColumns][kSumVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const auto* xv = reinterpret_cast<const Vector<T>*>(x + r * kLanes<T>);
#pragma GCC unroll 8
    for (int64_t c = 0; c < kSumColumns; ++c) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kSumVectors; ++v) acc[c][v] += l[r * kFactorBlock + c] * xv[v];
    }
  }
  for (int64_t c = 0; c < kSumColumns; ++c) {
    for (int64_t v = 0; v < kSumVectors; ++v) {
      *reinterpret_cast<Vector<T>*>(sums + c * kLanes<T> + v * per_vector) = acc[c][v];
    }
  }
}

// sums [kFactorBlock, kLanes] = (rows of a factor block)' x.
template <typename T>
inline void SumBlock(const T* l, const T* x, int64_t rows, T* sums) {
  constexpr int64_t lanes = kSumVectors * BABAI_VECTOR_BYTES / sizeof(T);
  for (int64_t c = 0; c < kFactorBlock; c += kSumColumns) {
    for (int64_t v = 0; v < kLanes<T>; v += lanes) {
      SumPart(l + c, x + v, rows, sums + c * kLanes<T> + v);
    }
  }
}

template <typename T>
inline T Clamp(T code, T max_code) {
  return code < 0 ? T{0} : code > max_code ? max_code : code;
}
template <typename T>
inline T ClampCode(T code, T max_code, uint8_t) {
  return Clamp(code, max_code);
}
template <typename T>
inline T ClampCode(T code, T, int32_t) {
  return code;
}

// Rounds the wanted values u [kLanes] of one original column: q receives the decoded values.
template <typename T, typename Code>
inline void Round(const UniformTile<T, Code>& grid, int64_t column, const T* u, T* q) {
  const T* __restrict scale = grid.scales + column / grid.group * kLanes<T>;
  const T* __restrict zero = grid.zeros + column / grid.group * kLanes<T>;
  Code* __restrict code = grid.codes + column * kLanes<T>;
  int32_t* __restrict clipped = grid.clipped;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const T wanted = RoundToEven(u[i] / scale[i]) + zero[i];
    const T stored = ClampCode(wanted, grid.max_code, Code{});
    q[i] = scale[i] * (stored - zero[i]);
    code[i] = static_cast<Code>(static_cast<int32_t>(stored));
    clipped[i] += stored != wanted;
  }
}

// One column of the sweep. `interference` is sum over later positions of L[later, p] (w -
// q)[later]: what their rounding errors ask of this one, so that only errors, never weights, are
// multiplied by L.
template <typename T, typename Grid>
inline void NearestPlane(const FactorView<T>& f, int64_t p, const T* weights, const Grid& grid,
                         const T* interference, T* error, double* losses) {
  const int64_t column = f.order[p];
  const T* w = weights + column * kLanes<T>;
  const T inverse = f.inverse_diag[p], diag = f.diag[p];
  alignas(64) T u[kLanes<T>], q[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) u[i] = w[i] + interference[i] * inverse;
  Round(grid, column, u, q);
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    error[i] = w[i] - q[i];
    const double y = diag * (u[i] - q[i]);
    losses[i] += y * y;
  }
}

template <typename T, typename Grid>
void Babai(const FactorView<T>& f, const T* weights, const Grid& grid, T* error, double* losses) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) losses[i] = 0;
  for (int64_t x = f.k * kLanes<T>; x < padded * kLanes<T>; ++x) error[x] = 0;
  for (int64_t b = padded / kFactorBlock - 1; b >= 0; --b) {
    const T* own = f.columns + FactorBlockOffset(b, padded);
    T* block_error = error + b * kFactorBlock * kLanes<T>;
    SumBlock(own + kFactorBlock * kFactorBlock, block_error + kFactorBlock * kLanes<T>,
             padded - (b + 1) * kFactorBlock, sums);
    for (int64_t c = kFactorBlock - 1; c >= 0; --c) {
      const int64_t p = b * kFactorBlock + c;
      if (p >= f.k) continue;
      T* interference = sums + c * kLanes<T>;
      for (int64_t later = c + 1; later < kFactorBlock; ++later) {
        const T l = own[later * kFactorBlock + c];
        for (int64_t i = 0; i < kLanes<T>; ++i)
          interference[i] += l * block_error[later * kLanes<T> + i];
      }
      NearestPlane(f, p, weights, grid, interference, block_error + c * kLanes<T>, losses);
    }
  }
}

template <typename T, typename Grid>
void Nearest(int64_t k, const T* weights, const Grid& grid, T* error) {
  alignas(64) T q[kLanes<T>];
  for (int64_t column = 0; column < k; ++column) {
    const T* w = weights + column * kLanes<T>;
    Round(grid, column, w, q);
    for (int64_t i = 0; i < kLanes<T>; ++i) error[column * kLanes<T> + i] = w[i] - q[i];
  }
}

template <typename T>
void Norms(const FactorView<T>& f, const T* x, double* losses) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) losses[i] = 0;
  for (int64_t b = 0; b < padded / kFactorBlock; ++b) {
    const int64_t first = b * kFactorBlock;
    SumBlock(f.columns + FactorBlockOffset(b, padded), x + first * kLanes<T>, padded - first, sums);
    for (int64_t c = 0; c < kFactorBlock; ++c) {
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        losses[i] += static_cast<double>(sums[c * kLanes<T> + i]) * sums[c * kLanes<T> + i];
      }
    }
  }
}

template <typename T, typename Grid>
constexpr TileOps<T, Grid> kTileOps = {&Babai<T, Grid>, &Nearest<T, Grid>, &Norms<T>};

// ---- scale search
// ---------------------------------------------------------------------------------

constexpr int64_t kFitLanes = kLanes<float>;

// The nearest fp16 value, for 0 <= s < 65520; larger s stay larger. Never 0, so that s divides.
inline float StoredScale(float s) {
  // Above 2^-14 fp16 keeps 10 of fp32's 23 mantissa bits; below, multiples of 2^-24, which is the
  // spacing of fp32 in [0.5, 1).
  const uint32_t bits = __builtin_bit_cast(uint32_t, s);
  const uint32_t kept = (bits + 0xFFF + ((bits >> 13) & 1)) & ~uint32_t{0x1FFF};
  const float subnormal = (s + 0.5f) - 0.5f;
  const float stored = s < 0x1p-14f ? subnormal : __builtin_bit_cast(float, kept);
  return stored < 0x1p-24f ? 0x1p-24f : stored;
}

struct Range {
  alignas(64) float low[kFitLanes];   // <= 0
  alignas(64) float high[kFitLanes];  // >= 0
};

inline void FindRange(const FitTile& t, Range& r) {
  for (int64_t i = 0; i < kFitLanes; ++i) r.low[i] = r.high[i] = 0;
  for (int64_t c = 0; c < t.columns; ++c) {
    const float* w = t.weights + c * kFitLanes;
    for (int64_t i = 0; i < kFitLanes; ++i) {
      r.low[i] = w[i] < r.low[i] ? w[i] : r.low[i];
      r.high[i] = w[i] > r.high[i] ? w[i] : r.high[i];
    }
  }
  if (!t.symmetric) return;
  for (int64_t i = 0; i < kFitLanes; ++i) {
    r.high[i] = -r.low[i] > r.high[i] ? -r.low[i] : r.high[i];
    r.low[i] = -r.high[i];
  }
}

inline void Candidate(const FitTile& t, const Range& r, float shrink, float shift, float* scale,
                      float* zero) {
  const float middle = (t.max_code + 1) * 0.5f;
  for (int64_t i = 0; i < kFitLanes; ++i) {
    const float span = (r.high[i] - r.low[i]) * shrink;
    // A group of zeros: any scale decodes it; 1 keeps every later value of the group representable.
    scale[i] = span == 0 ? 1.0f : StoredScale(span / t.max_code);
    const float wanted = RoundToEven(-r.low[i] * shrink / scale[i]);
    const float zero_code = Clamp(wanted + shift, t.max_code);
    zero[i] = t.symmetric ? middle : zero_code;
  }
}

inline void SquaredError(const FitTile& t, const float* scale, const float* zero, float* error) {
  using V = Vector<float>;
  constexpr int64_t per_vector = BABAI_VECTOR_BYTES / sizeof(float);
  // Adding 1.5 * 2^23 rounds a float below 2^22 to the nearest integer, ties to even.
  const V magic = V{} + 12582912.0f;
  for (int64_t v = 0; v < kFitLanes; v += per_vector) {
    const V s = *reinterpret_cast<const V*>(scale + v), inverse = 1.0f / s;
    const V low = -*reinterpret_cast<const V*>(zero + v), high = low + t.max_code;
    V sum = {};
    for (int64_t c = 0; c < t.columns; ++c) {
      const V w = *reinterpret_cast<const V*>(t.weights + c * kFitLanes + v);
      V code = w * inverse;
      code = code < low ? low : code;
      code = code > high ? high : code;
      code = (code + magic) - magic;
      const V d = w - s * code;
      sum += t.importance[c] * (d * d);
    }
    *reinterpret_cast<V*>(error + v) = sum;
  }
}

// The best parameters of each lane so far.
struct Best {
  alignas(64) float error[kFitLanes];
  float* scales;
  float* zeros;
};

inline void KeepBetter(const float* error, const float* scale, const float* zero, Best& best) {
  for (int64_t i = 0; i < kFitLanes; ++i) {
    const bool better = error[i] < best.error[i];
    best.error[i] = better ? error[i] : best.error[i];
    best.scales[i] = better ? scale[i] : best.scales[i];
    best.zeros[i] = better ? zero[i] : best.zeros[i];
  }
}

void Fit(const FitTile& t, float* scales, float* zeros) {
  Range range;
  FindRange(t, range);
  Candidate(t, range, t.shrinks[0], 0, scales, zeros);
  if (t.candidates == 1) return;
  alignas(64) float scale[kFitLanes], zero[kFitLanes], error[kFitLanes];
  Best best = {{}, scales, zeros};
  SquaredError(t, scales, zeros, best.error);
  for (int64_t n = 0; n < t.candidates; ++n) {
    for (float shift = -t.zero_reach; shift <= t.zero_reach; ++shift) {
      Candidate(t, range, t.shrinks[n], shift, scale, zero);
      SquaredError(t, scale, zero, error);
      KeepBetter(error, scale, zero, best);
    }
  }
}

}  // namespace
}  // namespace babai
