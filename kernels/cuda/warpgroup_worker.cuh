// The products of tile_gemm.h's kernel for many tokens.
#pragma once

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/tile_sums.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Many tokens: weights scaled in registers, the 64 rows of four warps at a time times all tokens.
template <int kBits, typename T, typename Shape>
struct WarpgroupWorker : TileSums<T, Shape> {
  using Base = TileSums<T, Shape>;
  using Scale = GroupScale<kBits, T>;
  using Base::p, Base::warp, Base::lane, Base::sums, Base::kTokens;
  static constexpr int kHalfBytes = kTileRows * kHalfCols * kBits / 8;
  static constexpr int kSymmetricZero = 1 << (kBits - 1);
  // Products under way while the next fragments are made; more tokens leave no registers for it,
  // and there the other warpgroups' products fill the time.
  static constexpr int kPending = kTokens <= 64 ? 1 : 0;

  uint8_t* smem;
  uint32_t full, empty;

  __device__ __forceinline__ void Load(Scale& s, const uint8_t* scales,
                                       const uint8_t* zeros) const {
    const int g = lane / 4;
    s.SetScales(*reinterpret_cast<const __half2*>(scales + 4 * g));
    if (!p.asymmetric) return;
    const uchar2 z = *reinterpret_cast<const uchar2*>(zeros + 2 * g);
    s.SetZeros(z.x, z.y);
  }
  // Of the group that begins at step `step` of a tile.
  __device__ __forceinline__ void LoadGroup(Scale& s, const uint8_t* tile, int step) const {
    const uint8_t* scales = tile + 2 * kHalfBytes;
    const int group = step >> p.group_shift;
    Load(s, scales + group * 32, scales + p.zeros_offset + group * 16);
  }

  // A stage that no lane reads any more.
  __device__ __forceinline__ void Release(uint32_t stage) const {
    __syncwarp();
    if (lane == 0) BarrierArrive(stage);
  }
  // Multiplies one k tile. `release`: the stage before this tile's, if its products may still be
  // under way; they are done after the first half.
  __device__ __forceinline__ void Multiply(const uint8_t* tile, uint32_t x, Scale& scale,
                                           uint32_t exponent, uint32_t release) {
    constexpr uint32_t kNextHalf = kTokens * kXBoxCols * 2 >> 4, kNextStep = kStepCols * 2 >> 4;
    uint32_t w[2][kBits];
    LoadWords<kBits>(w[0], tile, lane);
    LoadWords<kBits>(w[1], tile + kHalfBytes, lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kStepsPerHalf][4];
      if (half == 0 ? p.reload >= 1 : p.reload >= 2) LoadGroup(scale, tile, 4 * half);
      scale.template Dequantized<0>(a[0], w[half], exponent);
      scale.template Dequantized<1>(a[1], w[half], exponent);
      if (p.reload == 4) LoadGroup(scale, tile, 4 * half + 2);
      scale.template Dequantized<2>(a[2], w[half], exponent);
      scale.template Dequantized<3>(a[3], w[half], exponent);
      WarpgroupFence();
#pragma unroll
      for (int step = 0; step < kStepsPerHalf; ++step)
        WarpgroupMma<T, kTokens>(sums, a[step], x + half * kNextHalf + step * kNextStep);
      WarpgroupCommit();
      WarpgroupWait<kPending>();
      if (half == 0 && release != 0) Release(release);
    }
  }

  // The sums of units [at.unit, at.end) of a tile.
  __device__ __forceinline__ void Accumulate(TileCursor& at) {
#pragma unroll
    for (int j = 0; j < kTokens / 2; ++j) sums[j] = 0;
    Scale scale;
    scale.SetZeros(kSymmetricZero, kSymmetricZero);
    if (p.reload == 0) {
      const int64_t row_tile = this->InMatrix(this->Tile16(at.tile));
      Load(scale, p.weights + p.row_scales + row_tile * 32,
           p.weights + p.row_zeros + row_tile * 16);
    }
    const int of_unit = warp / 2 * p.unit_tiles * p.record_bytes + warp % 2 * p.tile_bytes;
    uint32_t release = 0;
#pragma unroll 1
    for (; at.unit < at.end; ++at.unit) {
      BarrierWait(full + at.stage * 8, at.parity);
      const int stage = p.ring + at.stage * p.stage_bytes;
      const uint8_t* tile = smem + stage + of_unit;
      // Broadcast: it becomes a uniform register, as operand B wants.
      uint32_t x = __shfl_sync(~0u, SwizzledOperand(full + stage + p.x_offset), 0);
      const int tiles = min(p.unit_tiles, p.k_tiles - at.unit * p.unit_tiles);
#pragma unroll 1
      for (int t = 0; t < tiles; ++t) {
        Multiply(tile, x, scale, p.exponent, release);
        release = 0, x += kTokens * kTileCols * 2 >> 4, tile += p.record_bytes;
      }
      release = empty + at.stage * 8;
      at.NextStage(p.stages);
    }
    WarpgroupWait<0>();
    PinRegisters(sums);
    Release(release);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
