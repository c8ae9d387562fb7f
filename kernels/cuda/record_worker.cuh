// The products of tile_gemm.h's kernel.
#pragma once

#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/tile_sums.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A warp multiplies one strip, kTileParts warps every kTileParts'th k tile of a unit.
template <int kBits, typename T, int kGroup>
struct RecordWorker : TileSums<T> {
  using Base = TileSums<T>;
  using Base::p, Base::lane, Base::sums, Base::warp;

  uint8_t* smem;
  uint32_t full, empty;

  __device__ __forceinline__ void Accumulate(TileCursor& at) {
    const int strip = this->Strip(), part = this->Part();
    float total[kStripTiles][kTileEights][4] = {}, x_sums[1][kTileEights][4] = {};
    // Row lane % 8 of matrix lane / 8, in a swizzled row of x.
    const uint32_t x_lane = lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16;
#pragma unroll 1
    for (; at.unit < at.end; ++at.unit) {
      BarrierWait(full + at.stage * 8, at.parity);
      const int stage = p.ring + at.stage * p.stage_bytes;
      const uint8_t* records = smem + stage + strip * p.unit_tiles * p.record_bytes;
      const uint32_t x_unit = full + stage + p.x_offset + x_lane;
      const int tiles = min(p.unit_tiles, p.k_tiles - at.unit * p.unit_tiles);
#pragma unroll 1
      for (int t = part; t < tiles; t += kTileParts) {
        const auto load_x = [&](int half, XHalf(&x)[kTileEights]) {
#pragma unroll
          for (int e = 0; e < kTileEights; ++e) {
            const uint32_t from =
                x_unit + ((t * 2 + half) * kTileGemmTokens + e * 8) * kXBoxCols * 2;
            LoadMatrix4(x[e][0], from), LoadMatrix4(x[e][1], from ^ 64);
          }
        };
        AddRecord<kBits, T, kGroup, true>(records + t * p.record_bytes, p.tile_bytes, load_x,
                                          x_sums, p.asymmetric, p.exponent, lane, total);
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(empty + at.stage * 8);
      at.NextStage(p.stages);
    }
    if constexpr (kGroup == 0) {
#pragma unroll
      for (int i = 0; i < kStripTiles; ++i) {
        // A tile may reach past the matrix, whose 16-row tiles end with its last strip.
        const int64_t tile =
            min((at.tile * kTileStrips + strip) * kStripTiles + i, p.strips * kStripTiles - 1);
        ScaleRows<kBits, T>(
            total[i], x_sums[0],
            {p.weights + p.row_scales + tile * 32, p.weights + p.row_zeros + tile * 16},
            p.asymmetric, lane);
      }
    }
    Meet(total, strip, part);
  }

  // The parts meet: of the two tiles that two warps have, each gives the other one and adds up its
  // own.
  __device__ __forceinline__ void Meet(const float (&total)[kStripTiles][kTileEights][4], int strip,
                                       int part) {
    static_assert(kTileParts == 2 && kStripTiles == 2);
    float4* const mail = reinterpret_cast<float4*>(smem + p.mail) + lane;
    const auto box = [&](int w, int e) -> float4& { return mail[(w * kTileEights + e) * kLanes]; };
#pragma unroll
    for (int e = 0; e < kTileEights; ++e) box(warp, e) = Pick(part != 0, total[0][e], total[1][e]);
    StripBarrier(strip);
    using Unit = TotalUnit<kBits, T>;
#pragma unroll
    for (int e = 0; e < kTileEights; ++e) {
      const float4 own = Pick(part != 0, total[1][e], total[0][e]);
      const float4 other = box(warp ^ kTileStrips, e);
      sums[e * 4] = (own.x + other.x) * Unit::kRow;
      sums[e * 4 + 1] = (own.y + other.y) * Unit::kRow;
      sums[e * 4 + 2] = (own.z + other.z) * Unit::kRow8;
      sums[e * 4 + 3] = (own.w + other.w) * Unit::kRow8;
    }
    StripBarrier(strip);  // read: the next may come
  }
  __device__ __forceinline__ static float4 Pick(bool first, const float (&a)[4],
                                                const float (&b)[4]) {
    return first ? make_float4(a[0], a[1], a[2], a[3]) : make_float4(b[0], b[1], b[2], b[3]);
  }
  // For the warps of the same strip.
  __device__ __forceinline__ static void StripBarrier(int strip) {
    asm volatile("bar.sync %0, %1;" ::"r"(strip + 1), "n"(kTileParts * kLanes) : "memory");
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
