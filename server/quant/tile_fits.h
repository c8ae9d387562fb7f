// Searches for the parameters of grids: part of tile_kernels.h, see there.
#pragma once

#include <cstdint>

#include "server/quant/tile.h"
#include "server/quant/tile_round.h"

namespace babai {
namespace {

constexpr int64_t kFitLanes = kLanes<float>;

// The scale as it is stored; larger than fp16 stays larger. Never 0, so that s divides.
inline float StoredScale(float s) {
  const float stored = NearestHalf(s);
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
    const float zero_code = Clamp(wanted + shift, 0.0f, t.max_code);
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
struct Leader {
  alignas(64) float error[kFitLanes];
  float* scales;
  float* zeros;
};

inline void KeepBetter(const float* error, const float* scale, const float* zero, Leader& best) {
  for (int64_t i = 0; i < kFitLanes; ++i) {
    const bool better = error[i] < best.error[i];
    best.error[i] = better ? error[i] : best.error[i];
    best.scales[i] = better ? scale[i] : best.scales[i];
    best.zeros[i] = better ? zero[i] : best.zeros[i];
  }
}

void FitScalesOf(const FitTile& t, float* scales, float* zeros) {
  Range range;
  FindRange(t, range);
  Candidate(t, range, t.shrinks[0], 0, scales, zeros);
  if (t.candidates == 1) return;
  alignas(64) float scale[kFitLanes], zero[kFitLanes], error[kFitLanes];
  Leader best = {{}, scales, zeros};
  SquaredError(t, scales, zeros, best.error);
  for (int64_t n = 0; n < t.candidates; ++n) {
    for (float shift = -t.zero_reach; shift <= t.zero_reach; ++shift) {
      Candidate(t, range, t.shrinks[n], shift, scale, zero);
      SquaredError(t, scale, zero, error);
      KeepBetter(error, scale, zero, best);
    }
  }
}

// ---- tables ------------------------------------------------------------------------------------

inline void LargestWeights(const FitTableTile& t, float* largest) {
  for (int64_t i = 0; i < kFitLanes; ++i) largest[i] = 0;
  for (int64_t c = 0; c < t.columns; ++c) {
    const float* w = t.weights + c * kFitLanes;
    for (int64_t i = 0; i < kFitLanes; ++i) {
      const float magnitude = w[i] < 0 ? -w[i] : w[i];
      largest[i] = magnitude > largest[i] ? magnitude : largest[i];
    }
  }
}

inline void TableError(const FitTableTile& t, const float* scale, float* error) {
  using V = Vector<float>;
  constexpr int64_t per_vector = BABAI_VECTOR_BYTES / sizeof(float);
  for (int64_t v = 0; v < kFitLanes; v += per_vector) {
    const V s = *reinterpret_cast<const V*>(scale + v), inverse = 1.0f / s;
    V sum = {};
    for (int64_t c = 0; c < t.columns; ++c) {
      const V x = *reinterpret_cast<const V*>(t.weights + c * kFitLanes + v) * inverse;
      V value = V{} + t.levels[0];
      for (int32_t i = 1; i < t.count; ++i) {
        value = x > t.middles[i - 1] ? V{} + t.levels[i] : value;
      }
      const V d = x - value;
      sum += *reinterpret_cast<const V*>(t.importance + c * kFitLanes + v) * (d * d);
    }
    *reinterpret_cast<V*>(error + v) = sum * (s * s);
  }
}

void FitTableScales(const FitTableTile& t, float* scales) {
  const float end = t.levels[t.count - 1] > -t.levels[0] ? t.levels[t.count - 1] : -t.levels[0];
  alignas(64) float largest[kFitLanes], scale[kFitLanes], error[kFitLanes], best[kFitLanes];
  LargestWeights(t, largest);
  for (int64_t n = 0; n < t.candidates; ++n) {
    for (int64_t i = 0; i < kFitLanes; ++i) {
      scale[i] = largest[i] == 0 ? 1.0f : StoredScale(largest[i] * t.shrinks[n] / end);
    }
    if (t.candidates > 1) TableError(t, scale, error);
    for (int64_t i = 0; i < kFitLanes; ++i) {
      const bool better = n == 0 || error[i] < best[i];
      best[i] = better ? error[i] : best[i];
      scales[i] = better ? scale[i] : scales[i];
    }
  }
}

// ---- patterns ----------------------------------------------------------------------------------

void BestPatterns(const PatternTile& t, int32_t* best, float* error) {
  using V = Vector<float>;
  constexpr int64_t per_vector = BABAI_VECTOR_BYTES / sizeof(float);
  for (int64_t v = 0; v < kFitLanes; v += per_vector) {
    const V mass = *reinterpret_cast<const V*>(t.mass + v);
    const V moment = *reinterpret_cast<const V*>(t.moment + v);
    V least = V{} + __builtin_inff(), which = {};
    for (int64_t n = 0; n < t.number; ++n) {
      const uint8_t* point = t.patterns + n * t.count;
      const float last = point[t.count - 1];
      V sum = last * (last * mass - 2 * moment);
      for (int32_t i = 1; i < t.count; ++i) {
        const float gap = point[i] - point[i - 1];
        const auto* cut = t.cuts + (point[i] + point[i - 1]) * kFitLanes + v;
        sum += gap * *reinterpret_cast<const V*>(cut);
      }
      which = sum < least ? V{} + static_cast<float>(n) : which;
      least = sum < least ? sum : least;
    }
    for (int64_t i = 0; i < per_vector; ++i) {
      best[v + i] = static_cast<int32_t>(which[i]);
      error[v + i] = least[i];
    }
  }
}

constexpr FitOps kFitOps = {&FitScalesOf, &FitTableScales, &BestPatterns};

}  // namespace
}  // namespace babai
