// What both attention kernels are made of: 16 query rows of a warp against a tile of keys.
//
// Shared-memory rows hold kDim values and 8 more, so that the eight rows of an ldmatrix lie in
// different banks. Lane l = 4 g + t of a warp owns rows g and g + 8 of the 16, as mma.m16n8k16 lays
// out its accumulators.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {

constexpr int kRowsOfWarp = 16;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

template <int kDim>
constexpr int kRowHalves = kDim + 8;  // of a row in shared memory

// 2^v, to 2^-22 of it; 0 for what is subnormal.
__device__ __forceinline__ float Exp2(float v) {
#ifdef __CUDA_ARCH__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#else
  return exp2f(v);
#endif
}

__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// What a softmax over tiles of keys remembers of a lane's two rows.
struct RowsSoftmax {
  float top[2] = {kMinusInfinity, kMinusInfinity};  // largest score so far, times log2(e)
  float sum[2] = {0, 0};  // of this lane's weights; of all four after Finish()

  // Turns raw scores, minus infinity where masked, into weights of the tile. factor > 0: makes them
  // scores times log2(e). keep: what earlier tiles' weights and sums are to be multiplied by.
  template <int kEights>
  __device__ __forceinline__ void Weigh(float (&s)[kEights][4], float factor, float (&keep)[2]) {
    // Few warps do this at a time: chains of dependent operations are kept short.
    constexpr int kChains = kEights < 4 ? kEights : 4;
    float most[2][kChains], part[2][kChains], base[2];
#pragma unroll
    for (int n = 0; n < kEights; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float pair = fmaxf(s[n][2 * r], s[n][2 * r + 1]);
        most[r][n % kChains] = n < kChains ? pair : fmaxf(most[r][n % kChains], pair);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 1; i < kChains; ++i) most[r][0] = fmaxf(most[r][0], most[r][i]);
    }
#pragma unroll
    for (int step = 1; step <= 2; ++step) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        most[r][0] = fmaxf(most[r][0], __shfl_xor_sync(kAllLanes, most[r][0], step));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(top[r], most[r][0] * factor);
      base[r] = now == kMinusInfinity ? 0.0f : now;  // nothing seen yet: all weights 0
      keep[r] = Exp2(top[r] - base[r]);
      top[r] = now;
    }
#pragma unroll
    for (int n = 0; n < kEights; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* const two = s[n] + 2 * r;
        two[0] = Exp2(fmaf(two[0], factor, -base[r])),
        two[1] = Exp2(fmaf(two[1], factor, -base[r]));
        const float sum_of_two = two[0] + two[1];
        part[r][n % kChains] = n < kChains ? sum_of_two : part[r][n % kChains] + sum_of_two;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] *= keep[r];
#pragma unroll
      for (int i = 0; i < kChains; ++i) sum[r] += part[r][i];
    }
  }
  __device__ __forceinline__ void Finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
      sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    }
  }
};

// The weights of 16 keys, eights n and n + 1, as operand A of a product.
template <int kEights>
__device__ __forceinline__ void PackWeights(uint32_t (&a)[4], const float (&s)[kEights][4], int n) {
  a[0] = PackHalves(s[n][0], s[n][1]), a[1] = PackHalves(s[n][2], s[n][3]);
  a[2] = PackHalves(s[n + 1][0], s[n + 1][1]), a[3] = PackHalves(s[n + 1][2], s[n + 1][3]);
}

// Scores, weights and sums of 16 rows against kKeys keys at a time.
template <int kDim, int kKeys>
struct RowsState : RowsSoftmax {
  float out[kDim / 8][4] = {};  // [8 features][row g: 2t, 2t + 1; row g + 8: likewise]

  // Scores of keys in `k`, rows of shared memory. `q`: the warp's 16 rows there.
  __device__ __forceinline__ void Scores(uint32_t q, uint32_t k, int lane,
                                         float (&s)[kKeys / 8][4]) const {
    constexpr int kRowBytes = kRowHalves<kDim> * 2;
    const uint32_t q_lane = q + (lane % 16) * kRowBytes + lane / 16 * 16;
    const uint32_t k_lane = k + (lane % 8 + lane / 16 * 8) * kRowBytes + lane / 8 % 2 * 16;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t a[4];
      LoadMatrix4(a, q_lane + d * 32);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {  // 16 keys: two column tiles of both k halves
        uint32_t b[4];
        LoadMatrix4(b, k_lane + n * 16 * kRowBytes + d * 32);
        Mma<__half>(s[2 * n], a, b[0], b[1]);
        Mma<__half>(s[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // s: scores times log2(e), minus infinity where masked. Adds their weights times the rows of `v`.
  __device__ __forceinline__ void Add(float (&s)[kKeys / 8][4], uint32_t v, int lane) {
    constexpr int kRowBytes = kRowHalves<kDim> * 2;
    float keep[2];
    Weigh(s, 1.0f, keep);
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[d][i] *= keep[i / 2];
    }
    const uint32_t v_lane = v + (lane % 16) * kRowBytes + lane / 16 * 16;
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t a[4];
      PackWeights(a, s, 2 * n);
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];
        LoadMatrix4Transposed(b, v_lane + n * 16 * kRowBytes + d * 32);
        Mma<__half>(out[2 * d], a, b[0], b[1]);
        Mma<__half>(out[2 * d + 1], a, b[2], b[3]);
      }
    }
  }
};

// A raw q.k as the score that the softmax of base 2 takes.
__device__ __forceinline__ float ScoreOf(float raw, const AttentionArgs& a) {
  if (a.softcap > 0) return a.softcap * tanhf(raw * (a.scale / a.softcap)) * kLog2E;
  return raw * (a.scale * kLog2E);
}

// One row of q, as fp16, into shared memory; zeros past head_dim, or all zeros without a source.
template <typename T, int kDim>
__device__ __forceinline__ void LoadQueryRow(const T* from, int dim, __half* to, int lane) {
#pragma unroll
  for (int d = lane; d < kDim; d += kWarp) {
    to[d] = from != nullptr && d < dim ? __float2half_rn(ToFloat(from[d])) : __half(0.0f);
  }
}

template <typename T>
__device__ __forceinline__ const T* QueryAt(const AttentionArgs& a, int64_t row, int head) {
  return static_cast<const T*>(a.q.data) + row * a.q.stride + head * a.cache.head_dim;
}

}  // namespace babai::cuda
