// Tiles of packed_layout.h times x on mma.m16n8k16: weights stay the integers they are, the
// scale of a group multiplies its fp32 sums.
#pragma once

#include "kernels/cuda/dequant.cuh"

namespace babai::cuda {

// Sums are arrays [eight tokens][4] of a lane: rows g and g + 8 of a tile, tokens 2t and 2t + 1.
// The plain sums of x, which the zero points multiply (see dequant.cuh), lie in the same places.
template <int kEights>
__device__ __forceinline__ void Clear(float (&s)[kEights][4]) {
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s[e][j] = 0;
  }
}

// Where the scales and zeros of two rows, g and g + 8, of a tile and group are.
struct RowPairMeta {
  const uint8_t *scales, *zeros;
};

// total += scale * (sums - zero * sum of x), for one tile and group.
template <int kBits, typename T, int kEights>
__device__ __forceinline__ void AddScaled(float (&total)[kEights][4],
                                          const float (&sum)[kEights][4],
                                          const float (&x)[kEights][4], const RowPairMeta& at,
                                          bool asymmetric, int lane) {
  using F = Fragment<kBits, T>;
  const int g = lane / 4;
  const float2 s = __half22float2(*reinterpret_cast<const __half2*>(at.scales + 4 * g));
  float zero = F::kSymmetricZero, zero8 = F::kSymmetricZero;
  if (asymmetric) {
    const uchar2 z = *reinterpret_cast<const uchar2*>(at.zeros + 2 * g);
    zero = z.x, zero8 = z.y;
  }
  const float z = -F::kUnit * (F::kBias + zero), z8 = -F::kUnit * (F::kBias + F::kRow8 * zero8);
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
    total[e][0] = fmaf(s.x, fmaf(z, x[e][0], sum[e][0]), total[e][0]);
    total[e][1] = fmaf(s.x, fmaf(z, x[e][1], sum[e][1]), total[e][1]);
    total[e][2] = fmaf(s.y, fmaf(z8, x[e][0], sum[e][2]), total[e][2]);
    total[e][3] = fmaf(s.y, fmaf(z8, x[e][1], sum[e][3]), total[e][3]);
  }
}

// What turns a total into units of y: for row g and for row g + 8.
template <int kBits, typename T>
struct TotalUnit {
  using F = Fragment<kBits, T>;
  static constexpr float kRow = 1 / F::kUnit, kRow8 = 1 / (F::kUnit * F::kRow8);
};

// Works through kTiles tiles of rows at the same 128 columns. With groups, `run` holds the sums of
// the current group and `total` takes them scaled; with a group a row, `run` collects all it is
// given. kSumX: makes the sums of x; otherwise `x` already has those of the one group. tile_at(i):
// tile i, in shared memory. load_x(half, e, b): operand B of eight tokens and 64 columns, as two
// LoadMatrix4 give it.
template <int kBits, typename T, int kGroup, int kTiles, int kEights, typename TileAt,
          typename LoadX>
__device__ __forceinline__ void AddTiles(const TileAt& tile_at, const LoadX& load_x,
                                         bool asymmetric, uint32_t wide_exponent, int lane,
                                         float (&run)[kTiles][kEights][4], float (&x)[kEights][4],
                                         float (&total)[kTiles][kEights][4]) {
  constexpr int kStepsPerGroup = (kGroup == 0 ? kTileCols : kGroup) / kStepCols;
  constexpr int kCodeBytes = kTileRows * kTileCols * kBits / 8;
  constexpr int kGroups = kGroup == 0 ? 0 : kTileCols / kGroup;
  // The sums of x too come from the tensor cores, which have time to spare: ones for weights.
  constexpr uint32_t kOnes = __is_same(T, __half) ? 0x3c003c00u : 0x3f803f80u;
  constexpr uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
  using F = Fragment<kBits, T>;
  const uint32_t exponent = F::kHalf ? 0 : wide_exponent;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t w[kTiles][kBits], b[kEights][2][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      LoadWords<kBits>(w[i], tile_at(i) + half * kCodeBytes / 2, lane);
#pragma unroll
    for (int e = 0; e < kEights; ++e) load_x(half, e, b[e]);
#pragma unroll
    for (int step = 0; step < kStepsPerHalf; ++step) {
      const int at = half * kStepsPerHalf + step, group = at / kStepsPerGroup;
      if (kGroup != 0 && at % kStepsPerGroup == 0) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) Clear(run[i]);
        Clear(x);
      }
      const auto b0 = [&](int e) { return b[e][step / 2][step % 2 * 2]; };
      const auto b1 = [&](int e) { return b[e][step / 2][step % 2 * 2 + 1]; };
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        uint32_t a[4];
        if (step == 0) Dequantize<kBits, T, 0>(a, w[i], exponent);
        if (step == 1) Dequantize<kBits, T, 1>(a, w[i], exponent);
        if (step == 2) Dequantize<kBits, T, 2>(a, w[i], exponent);
        if (step == 3) Dequantize<kBits, T, 3>(a, w[i], exponent);
#pragma unroll
        for (int e = 0; e < kEights; ++e) Mma<T>(run[i][e], a, b0(e), b1(e));
      }
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        Mma<T>(x[e], ones, b0(e), b1(e));
      }
      if (kGroup != 0 && at % kStepsPerGroup == kStepsPerGroup - 1) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint8_t* meta = tile_at(i) + kCodeBytes;
          AddScaled<kBits, T>(total[i], run[i], x,
                              {meta + group * 32, meta + kGroups * 32 + group * 16}, asymmetric,
                              lane);
        }
      }
    }
  }
}

}  // namespace babai::cuda
