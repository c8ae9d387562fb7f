// The products of tile_gemm.h's kernel for few tokens.
#pragma once

#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/tile_sums.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Few tokens: a warp multiplies kTiles tiles of 16 rows, kParts warps every kParts'th k tile of a
// unit. Their integers stay unscaled (record_mma.cuh), which takes a third of the instructions.
template <int kBits, typename T, typename Shape, int kGroup>
struct RecordWorker : TileSums<T, Shape> {
  using Base = TileSums<T, Shape>;
  using Base::p, Base::lane, Base::sums, Base::warp, Base::kEights, Base::kTokens;
  static constexpr int kTiles = Shape::kRecordTiles;
  static constexpr int kParts = kTiles, kRowParts = 8 / kTiles;

  uint8_t* smem;
  uint32_t full, empty;

  __device__ __forceinline__ void Accumulate(TileCursor& at) {
    const int rows = warp % kRowParts, part = warp / kRowParts;
    float run[kTiles][kEights][4] = {}, total[kTiles][kEights][4] = {}, x_sums[kEights][4] = {};
    // Row lane % 8 of matrix lane / 8, in a swizzled row of x.
    const uint32_t x_lane = lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16;
    const int strip_bytes = p.unit_tiles * p.record_bytes;
#pragma unroll 1
    for (; at.unit < at.end; ++at.unit) {
      BarrierWait(full + at.stage * 8, at.parity);
      const int stage = p.ring + at.stage * p.stage_bytes;
      const uint8_t* records = smem + stage + rows * (kTiles / kStripTiles) * strip_bytes;
      const uint32_t x = full + stage + p.x_offset;
      const int tiles = min(p.unit_tiles, p.k_tiles - at.unit * p.unit_tiles);
#pragma unroll 1
      for (int t = part; t < tiles; t += kParts) {
        const uint8_t* record = records + t * p.record_bytes;
        const uint32_t x_tile = x + t * kTokens * kTileCols * 2 + x_lane;
        const auto tile_at = [&](int i) {
          return record + i / kStripTiles * strip_bytes + i % kStripTiles * p.tile_bytes;
        };
        const auto load_x = [&](int half, int e, uint32_t(&b)[2][4]) {
          const uint32_t from = x_tile + (half * kTokens + e * 8) * kXBoxCols * 2;
          LoadMatrix4(b[0], from);
          LoadMatrix4(b[1], from ^ 64);
        };
        AddTiles<kBits, T, kGroup>(tile_at, load_x, p.asymmetric, p.exponent, lane, run, x_sums,
                                   total);
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(empty + at.stage * 8);
      at.NextStage(p.stages);
    }
    if constexpr (kGroup == 0) {
      const int tile0 = this->RowTile(at.tile) * (Shape::kRows / kTileRows) + rows * kTiles;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int64_t tile = this->InMatrix(tile0 + i);
        AddScaled<kBits, T>(
            total[i], run[i], x_sums,
            {p.weights + p.row_scales + tile * 32, p.weights + p.row_zeros + tile * 16},
            p.asymmetric, lane);
      }
    }
    if constexpr (kTiles == 4) {
      float half[2][kEights][4], own[1][kEights][4];
      Swap(total, half, part % 2 != 0, kRowParts, rows);
      Swap(half, own, part / 2 != 0, 2 * kRowParts, rows);
      Finish(own[0]);
    } else {
      float own[1][kEights][4];
      Swap(total, own, part != 0, kRowParts, rows);
      Finish(own[0]);
    }
  }

  // The parts meet: of the tiles that two warps have, each gives the other half and adds up its
  // own.
  template <int kKeep>
  __device__ __forceinline__ void Swap(const float (&mine)[2 * kKeep][kEights][4],
                                       float (&sum)[kKeep][kEights][4], bool upper, int distance,
                                       int rows) {
    float4* const mail = reinterpret_cast<float4*>(smem + p.mail) + lane;
    const auto box = [&](int w, int i, int e) {
      return mail + ((w * 2 + i) * kEights + e) * kLanes;
    };
#pragma unroll
    for (int i = 0; i < kKeep; ++i) {
#pragma unroll
      for (int e = 0; e < kEights; ++e)
        *box(warp, i, e) = Pick(upper, mine[i][e], mine[kKeep + i][e]);
    }
    RowsBarrier(rows);
#pragma unroll
    for (int i = 0; i < kKeep; ++i) {
#pragma unroll
      for (int e = 0; e < kEights; ++e)
        Add(sum[i][e], Pick(upper, mine[kKeep + i][e], mine[i][e]), *box(warp ^ distance, i, e));
    }
    RowsBarrier(rows);  // read: the next may come
  }
  __device__ __forceinline__ void Finish(const float (&own)[kEights][4]) {
    using Unit = TotalUnit<kBits, T>;
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      sums[e * 4] = own[e][0] * Unit::kRow, sums[e * 4 + 1] = own[e][1] * Unit::kRow;
      sums[e * 4 + 2] = own[e][2] * Unit::kRow8, sums[e * 4 + 3] = own[e][3] * Unit::kRow8;
    }
  }
  __device__ __forceinline__ static float4 Pick(bool first, const float (&a)[4],
                                                const float (&b)[4]) {
    return first ? make_float4(a[0], a[1], a[2], a[3]) : make_float4(b[0], b[1], b[2], b[3]);
  }
  __device__ __forceinline__ static void Add(float (&sum)[4], const float4& a, const float4& b) {
    sum[0] = a.x + b.x, sum[1] = a.y + b.y, sum[2] = a.z + b.z, sum[3] = a.w + b.w;
  }
  // For the warps of the same rows.
  __device__ __forceinline__ static void RowsBarrier(int rows) {
    asm volatile("bar.sync %0, %1;" ::"r"(rows + 1), "n"(kParts * kLanes) : "memory");
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
