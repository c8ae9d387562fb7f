// Rounding to each grid, for one column of a tile: part of tile_kernels.h, see there.
//
// A grid provides Round (the nearest value), Decode (the value of a code), its first and last code,
// and AddRates (what coding costs). Everything else about it is unknown to the solvers.
#pragma once

#include <cstdint>

#include "server/quant/tile.h"

namespace babai {
namespace {

inline float RoundToEven(float x) { return __builtin_nearbyintf(x); }
inline double RoundToEven(double x) { return __builtin_nearbyint(x); }

template <typename T>
using Vector [[gnu::vector_size(BABAI_VECTOR_BYTES), gnu::may_alias]] = T;

// The nearest fp16 value to s >= 0; above 65504 it may be larger than any fp16.
inline float NearestHalf(float s) {
  // Above 2^-14 fp16 keeps 10 of fp32's 23 mantissa bits; below, multiples of 2^-24, which is the
  // spacing of fp32 in [0.5, 1).
  const uint32_t bits = __builtin_bit_cast(uint32_t, s);
  const uint32_t kept = (bits + 0xFFF + ((bits >> 13) & 1)) & ~uint32_t{0x1FFF};
  const float subnormal = (s + 0.5f) - 0.5f;
  return s < 0x1p-14f ? subnormal : __builtin_bit_cast(float, kept);
}

// The nearest finite fp16 value.
template <typename T>
inline T NearestSignedHalf(T x) {
  const float magnitude = static_cast<float>(x < 0 ? -x : x);
  const float half = magnitude < 65504.0f ? NearestHalf(magnitude) : 65504.0f;
  return x < 0 ? -T{half} : T{half};
}

// NaN becomes `low`: a code stays a code whatever was asked for.
template <typename T>
inline T Clamp(T x, T low, T high) {
  return x > low ? (x < high ? x : high) : low;
}

// One column, rounded.
template <typename T>
struct Rounded {
  alignas(64) T value[kLanes<T>];
  alignas(64) int32_t code[kLanes<T>];
  alignas(64) int32_t outside[kLanes<T>];  // 1 = the grid has no value within half a gap
};

// ---- uniform -----------------------------------------------------------------------------------

template <typename T>
inline void Round(const UniformTile<T>& grid, int64_t column, T, const T* u, Rounded<T>& r) {
  const T* scale = grid.scales + column / grid.group * kLanes<T>;
  const T* zero = grid.zeros + column / grid.group * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const T wanted = RoundToEven(u[i] / scale[i]) + zero[i];
    const T stored = Clamp(wanted, grid.min_code, grid.max_code);
    r.value[i] = scale[i] * (stored - zero[i]);
    r.code[i] = static_cast<int32_t>(stored);
    r.outside[i] = stored != wanted;
  }
}

template <typename T>
inline void Decode(const UniformTile<T>& grid, int64_t column, const int32_t* code, T* value) {
  const T* scale = grid.scales + column / grid.group * kLanes<T>;
  const T* zero = grid.zeros + column / grid.group * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    value[i] = scale[i] * (static_cast<T>(code[i]) - zero[i]);
  }
}

template <typename T>
inline int32_t FirstCode(const UniformTile<T>& grid) {
  return static_cast<int32_t>(grid.min_code);
}
template <typename T>
inline int32_t LastCode(const UniformTile<T>& grid) {
  return static_cast<int32_t>(grid.max_code);
}

// ---- table -------------------------------------------------------------------------------------

template <typename T>
inline void Round(const TableTile<T>& grid, int64_t column, T, const T* u, Rounded<T>& r) {
  const T* scale = grid.scales + column / grid.group * kLanes<T>;
  alignas(64) T wanted[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    wanted[i] = u[i] / scale[i];
    r.value[i] = grid.levels[i];
    r.code[i] = 0;
    r.outside[i] = wanted[i] < grid.middles[i];
  }
  for (int32_t level = 1; level < grid.count; ++level) {
    const T* middle = grid.middles + level * kLanes<T>;
    const T* value = grid.levels + level * kLanes<T>;
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      const bool above = wanted[i] > middle[i];
      r.value[i] = above ? value[i] : r.value[i];
      r.code[i] += above;
    }
  }
  const T* end = grid.middles + grid.count * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    r.value[i] *= scale[i];
    r.outside[i] |= wanted[i] > end[i];
  }
}

template <typename T>
inline void Decode(const TableTile<T>& grid, int64_t column, const int32_t* code, T* value) {
  const T* scale = grid.scales + column / grid.group * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    value[i] = scale[i] * grid.levels[code[i] * kLanes<T> + i];
  }
}

template <typename T>
inline int32_t FirstCode(const TableTile<T>&) {
  return 0;
}
template <typename T>
inline int32_t LastCode(const TableTile<T>& grid) {
  return grid.count - 1;
}

// ---- integers ----------------------------------------------------------------------------------

template <typename T>
inline float RateOf(const IntegerTile<T>& grid, int64_t column, int64_t lane, int32_t code) {
  const int32_t wanted = grid.row_class[lane] + grid.col_class[column];
  const int32_t context = wanted < grid.contexts ? wanted : grid.contexts - 1;
  const int32_t entry = Clamp(code, -kRateReach, kRateReach) + kRateReach;
  return grid.rates[context * kRateEntries + entry];
}

// Of the two integers next to u, the one of the smaller cost (u - value)^2 + rate.
template <typename T>
inline void WeighRates(const IntegerTile<T>& grid, int64_t column, T cost, const T* u,
                       Rounded<T>& r) {
  const T step = grid.steps[column], value = grid.values[column];
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const int32_t beyond = u[i] > step * static_cast<T>(r.code[i]) ? 1 : -1;
    const int32_t other = Clamp(r.code[i] + beyond, -kLargestInteger, kLargestInteger);
    const T other_value = value * static_cast<T>(other);
    const T d = u[i] - r.value[i], other_d = u[i] - other_value;
    const T all = cost * (d * d) + RateOf(grid, column, i, r.code[i]);
    const T other_all = cost * (other_d * other_d) + RateOf(grid, column, i, other);
    const bool better = other_all < all;
    r.code[i] = better ? other : r.code[i];
    r.value[i] = better ? other_value : r.value[i];
  }
}

template <typename T>
inline void Round(const IntegerTile<T>& grid, int64_t column, T cost, const T* u, Rounded<T>& r) {
  const T step = grid.steps[column], value = grid.values[column];
  constexpr T largest = kLargestInteger;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const T wanted = RoundToEven(u[i] / step);
    const T stored = Clamp(wanted, -largest, largest);
    r.value[i] = value * stored;
    r.code[i] = static_cast<int32_t>(stored);
    r.outside[i] = stored != wanted;
  }
  if (grid.rates != nullptr) WeighRates(grid, column, cost, u, r);
}

template <typename T>
inline void Decode(const IntegerTile<T>& grid, int64_t column, const int32_t* code, T* value) {
  for (int64_t i = 0; i < kLanes<T>; ++i) value[i] = grid.values[column] * static_cast<T>(code[i]);
}

template <typename T>
inline int32_t FirstCode(const IntegerTile<T>&) {
  return -kLargestInteger;
}
template <typename T>
inline int32_t LastCode(const IntegerTile<T>&) {
  return kLargestInteger;
}

// ---- all grids ---------------------------------------------------------------------------------

// Adds what coding these codes costs to `score`: nothing, but for integers with rates.
template <typename T, typename Grid>
inline void AddRates(const Grid&, int64_t, const int32_t*, T*) {}
template <typename T>
inline void AddRates(const IntegerTile<T>& grid, int64_t column, const int32_t* code, T* score) {
  if (grid.rates == nullptr) return;
  for (int64_t i = 0; i < kLanes<T>; ++i) score[i] += RateOf(grid, column, i, code[i]);
}

// Puts the rest of what was wanted beside the grid where that is asked for: `beside` [kLanes] of
// the column receives it, r.value grows by it, and nothing is outside there any more.
template <typename T>
inline void KeepBeside(const TileCodes<T>& out, int64_t column, const T* u, T* beside,
                       Rounded<T>& r) {
  const uint8_t* kept = out.kept != nullptr ? out.kept + column * kLanes<T> : nullptr;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const bool keep = (kept != nullptr && kept[i] != 0) || (out.keep_overflow && r.outside[i] != 0);
    beside[i] = keep ? NearestSignedHalf(u[i] - r.value[i]) : T{0};
    r.value[i] += beside[i];
    r.outside[i] = keep ? 0 : r.outside[i];
  }
}

}  // namespace
}  // namespace babai
