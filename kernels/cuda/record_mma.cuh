// Tiles of packed_layout.h times x on mma.m16n8k16: weights stay the integers they are, the
// scale of a group multiplies its fp32 sums.
#pragma once

#include "kernels/cuda/dequant.cuh"

namespace babai::cuda {

template <int kBits, int kGroup, bool kAsymmetric>
constexpr int kRecordBytes =
    PackedShape{kStripRows, kTileCols, kBits, kGroup, kAsymmetric}.record_bytes();

// launch.operator()<T, kGroup>() for the element type and the group, which kernels are made for.
template <typename Launch>
cudaError_t ForFormat(Dtype dtype, int group, const Launch& launch) {
  const auto for_group = [&]<typename T>() {
    switch (group) {
      case 0:
        return launch.template operator()<T, 0>();
      case 32:
        return launch.template operator()<T, 32>();
      case 64:
        return launch.template operator()<T, 64>();
      case 128:
        return launch.template operator()<T, 128>();
      default:
        return cudaErrorInvalidValue;
    }
  };
  return dtype == Dtype::kFp16 ? for_group.template operator()<__half>()
                               : for_group.template operator()<__nv_bfloat16>();
}

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

// Whether rows g and g + 8 are dequantized mixed. With more tokens it takes registers that
// blocks of attention then lack beside these.
template <int kBits, typename T, int kEights>
constexpr bool kMixesRows = kBits == 4 && __is_same(T, __half) && kEights == 1;

// Takes row g out of the sums of row g + 8, where they are mixed.
template <int kBits, typename T, int kEights>
__device__ __forceinline__ void TakeRowsApart(float (&sums)[kEights][4]) {
  if constexpr (kMixesRows<kBits, T, kEights>) sums[0][2] -= sums[0][0], sums[0][3] -= sums[0][1];
}

// Where the scales and zeros of two rows, g and g + 8, of a tile and group are.
struct RowPairMeta {
  const uint8_t *scales, *zeros;
};

// total += scale * sums, for one tile and group.
template <int kEights>
__device__ __forceinline__ void AddScaled(float (&total)[kEights][4],
                                          const float (&sum)[kEights][4], const uint8_t* scales,
                                          int lane) {
  const float2 s = __half22float2(*reinterpret_cast<const __half2*>(scales + lane / 4 * 4));
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
    total[e][0] = fmaf(s.x, sum[e][0], total[e][0]);
    total[e][1] = fmaf(s.x, sum[e][1], total[e][1]);
    total[e][2] = fmaf(s.y, sum[e][2], total[e][2]);
    total[e][3] = fmaf(s.y, sum[e][3], total[e][3]);
  }
}

// total += scale * (sums - zero * sum of x), likewise.
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

// Operand B of half a k tile, x of eight tokens and 64 columns, as two LoadMatrix4() give it.
using XHalf = uint32_t[2][4];

// How the 128 columns of a k tile fall into groups; a group a row counts as one.
template <int kGroup>
struct TileGroups {
  static constexpr int kCount = kGroup == 0 ? 1 : kTileCols / kGroup;
  static constexpr int kSteps = kTileCols / kStepCols / kCount;  // of a group
};

// Operand A with the same weights in all rows g, and in all rows g + 8. From registers that the
// compiler knows nothing of, or it would put them together anew for every product.
struct SumWeights {
  uint32_t a[4];

  __device__ __forceinline__ SumWeights(uint32_t row, uint32_t row8)
      : a{Opaque(row), Opaque(row8), Opaque(row), Opaque(row8)} {}
};

// sums += the products of these weights and x over step `step` of a half. The tensor cores have
// time to spare for it.
template <typename T, int kEights>
__device__ __forceinline__ void SumX(const XHalf (&x)[kEights], int step,
                                     const uint32_t (&weights)[4], float (&sums)[kEights][4]) {
#pragma unroll
  for (int e = 0; e < kEights; ++e)
    Mma<T>(sums[e], weights, x[e][step / 2][step % 2 * 2], x[e][step / 2][step % 2 * 2 + 1]);
}

// Weights of one for SumX(): it then gives the plain sums.
template <typename T>
constexpr uint32_t kOnes = __is_same(T, __half) ? 0x3c003c00u : 0x3f803f80u;

// How AddRecord() takes the zero points into account.
enum class Zeros {
  kSumHere,   // x_sums is one, made here group by group, or with a group a row added to
  kSumGiven,  // x_sums holds the sums of x of each group of the tile
  kStart,     // x_sums holds what the sums of each group start from: those of Fragment's kMinusZero
};

// Adds kTiles tiles of rows in shared memory, of one record or of several one behind another, times
// x to `total`; with a group a row, without its scale and zero points. load_x(half, x): operand B.
template <int kBits, typename T, int kGroup, Zeros kZeros, int kTiles, int kEights, int kSums,
          typename LoadX>
__device__ __forceinline__ void AddRecord(const uint8_t* record, int tile_bytes,
                                          const LoadX& load_x, float (&x_sums)[kSums][kEights][4],
                                          bool asymmetric, uint32_t wide_exponent, int lane,
                                          float (&total)[kTiles][kEights][4]) {
  using F = Fragment<kBits, T>;
  using Groups = TileGroups<kGroup>;
  constexpr int kCodeBytes = kTileRows * kTileCols * kBits / 8;
  const uint32_t exponent = F::kHalf ? 0 : wide_exponent;
  float run[kTiles][kEights][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t w[kTiles][kBits];
    XHalf x[kEights];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      LoadWords<kBits>(w[i], record + i * tile_bytes + half * kCodeBytes / 2, lane);
    load_x(half, x);
#pragma unroll
    for (int s = 0; s < kStepsPerHalf; ++s) {
      const int step = half * kStepsPerHalf + s, group = step / Groups::kSteps;
      const bool first = kGroup != 0 && step % Groups::kSteps == 0;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (first) {  // in loops: a memcpy of run[i] was compiled to less than that by nvcc 13.0
#pragma unroll
          for (int e = 0; e < kEights; ++e) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
              run[i][e][j] = kZeros == Zeros::kStart ? x_sums[group][e][j] : 0;
          }
        }
        uint32_t a[4];
        constexpr bool kMixed = kMixesRows<kBits, T, kEights>;
        if (s == 0) DequantizeForSums<kBits, T, 0, kMixed>(a, w[i], exponent);
        if (s == 1) DequantizeForSums<kBits, T, 1, kMixed>(a, w[i], exponent);
        if (s == 2) DequantizeForSums<kBits, T, 2, kMixed>(a, w[i], exponent);
        if (s == 3) DequantizeForSums<kBits, T, 3, kMixed>(a, w[i], exponent);
        auto& sums = kGroup == 0 ? total[i] : run[i];
#pragma unroll
        for (int e = 0; e < kEights; ++e)
          Mma<T>(sums[e], a, x[e][s / 2][s % 2 * 2], x[e][s / 2][s % 2 * 2 + 1]);
      }
      if constexpr (kZeros == Zeros::kSumHere) {
        if (first) Clear(x_sums[0]);
        constexpr uint32_t ones[4] = {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>};
        SumX<T>(x, s, ones, x_sums[0]);
      }
      if (kGroup != 0 && step % Groups::kSteps == Groups::kSteps - 1) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint8_t* meta = record + i * tile_bytes + kCodeBytes;
          if constexpr (kZeros == Zeros::kStart) {
            static_assert(!kMixesRows<kBits, T, kEights>, "rows would start from one's zero point");
            AddScaled(total[i], run[i], meta + group * 32, lane);
          } else {
            TakeRowsApart<kBits, T>(run[i]);
            AddScaled<kBits, T>(total[i], run[i], x_sums[kZeros == Zeros::kSumHere ? 0 : group],
                                {meta + group * 32, meta + Groups::kCount * 32 + group * 16},
                                asymmetric, lane);
          }
        }
      }
    }
  }
}

// With a group a row: the sums of a row's integers become those of its weights.
template <int kBits, typename T, Zeros kZeros, int kEights>
__device__ __forceinline__ void ScaleRows(float (&sums)[kEights][4], const float (&x)[kEights][4],
                                          const RowPairMeta& at, bool asymmetric, int lane) {
  float scaled[kEights][4];
  Clear(scaled);
  if constexpr (kZeros == Zeros::kStart) {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[e][j] += x[e][j];
    }
    AddScaled(scaled, sums, at.scales, lane);
  } else {
    TakeRowsApart<kBits, T>(sums);
    AddScaled<kBits, T>(scaled, sums, x, at, asymmetric, lane);
  }
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[e][j] = scaled[e][j];
  }
}

}  // namespace babai::cuda
