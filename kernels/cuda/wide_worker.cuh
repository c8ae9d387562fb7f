// The products of wide_gemm.h's kernel.
#pragma once

#include "kernels/cuda/scaled_weights.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_sums.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// A multiplying warp: weights scaled in registers, the 64 rows of four warps times all tokens.
// kPlain: no zero points and at most one scale a k tile; branches for more cost 5 %. In fp16 the
// bound on scales is known then.
template <int kBits, typename T, typename Shape, bool kPlain>
struct WideWorker : WideSums<T, Shape> {
  using Base = WideSums<T, Shape>;
  static constexpr bool kNormed = kPlain && __is_same(T, __half);
  using Scale = typename ScaleOf<kBits, T, kNormed>::Type;
  using Base::p, Base::warp, Base::lane, Base::sums, Base::kTokens;
  static constexpr int kHalfBytes = kTileRows * kHalfCols * kBits / 8;
  static constexpr int kSymmetricZero = 1 << (kBits - 1);

  uint8_t* smem;
  uint32_t full, empty;

  __device__ __forceinline__ void SetScales(Scale& s, __half2 scales) const {
    if constexpr (kNormed) {
      __half2 first, second;
      __builtin_memcpy(&first, &p.norm.first, 4), __builtin_memcpy(&second, &p.norm.second, 4);
      scales = __hmul2(__hmul2(scales, first), second);
    }
    s.SetScales(scales);
  }
  __device__ __forceinline__ void Load(Scale& s, const uint8_t* scales,
                                       const uint8_t* zeros) const {
    const int g = lane / 4;
    SetScales(s, *reinterpret_cast<const __half2*>(scales + 4 * g));
    if (kPlain || !p.asymmetric) return;
    const uchar2 z = *reinterpret_cast<const uchar2*>(zeros + 2 * g);
    s.SetZeros(z.x, z.y);
  }
  // Of the group that begins at step `step` of a tile.
  __device__ __forceinline__ void LoadGroup(Scale& s, const uint8_t* tile, int step) const {
    const uint8_t* scales = tile + 2 * kHalfBytes;
    const int group = step >> p.group_shift;
    Load(s, scales + group * 32, scales + p.zeros_offset + group * 16);
  }

  // All lanes leave at once, by a vote, lest what comes after count as divergent: operand B's
  // descriptors then stay in uniform registers.
  __device__ __forceinline__ void WaitForUnit(const WideStage& at) const {
    while (!__all_sync(~0u, BarrierTest(full + at.stage * 8, at.parity))) {
    }
  }
  // A stage that no lane reads any more.
  __device__ __forceinline__ void Release(uint32_t stage) const {
    __syncwarp();
    if (lane == 0) BarrierArrive(stage);
  }
  // What is read of a half of a k tile before it is needed, under the products before it.
  struct Ahead {
    uint32_t w[kBits];
    __half2 scales;  // of kPlain
  };
  __device__ __forceinline__ void ReadAhead(Ahead& ahead, const uint8_t* tile, int half) const {
    LoadWords<kBits>(ahead.w, tile + half * kHalfBytes, lane);
    if (kPlain && half == 0 && p.reload > 0)
      ahead.scales = *reinterpret_cast<const __half2*>(tile + 2 * kHalfBytes + lane / 4 * 4);
  }
  // Starts the products of half `half` of a k tile; x: its operand. Behind the first half the
  // second one is read, before the products: between them it would hold them up.
  __device__ __forceinline__ void Multiply(Ahead& ahead, int half, const uint8_t* tile, uint64_t x,
                                           Scale& scale) {
    constexpr uint64_t kNextStep = kStepCols * 2 >> 4;
    uint32_t a[kStepsPerHalf][4];
    if (kPlain && half == 0) SetScales(scale, ahead.scales);
    if (!kPlain && p.reload >= (half == 0 ? 1 : 2)) LoadGroup(scale, tile, 4 * half);
    scale.template Dequantized<0>(a[0], ahead.w, p.exponent);
    scale.template Dequantized<1>(a[1], ahead.w, p.exponent);
    if (!kPlain && p.reload == 4) LoadGroup(scale, tile, 4 * half + 2);
    scale.template Dequantized<2>(a[2], ahead.w, p.exponent);
    scale.template Dequantized<3>(a[3], ahead.w, p.exponent);
    if (half == 0) ReadAhead(ahead, tile, 1);
    WarpgroupFence();
#pragma unroll
    for (int step = 0; step < kStepsPerHalf; ++step)
      WarpgroupMma<T, kTokens>(sums, a[step], x + step * kNextStep);
    WarpgroupCommit();
  }

  // The sums of a piece.
  __device__ __forceinline__ void Accumulate(const WidePiece& piece, WideStage& at) {
    constexpr uint64_t kNextHalf = kTokens * kXBoxCols * 2 >> 4;
#pragma unroll
    for (int j = 0; j < Base::kSums; ++j) sums[j] = 0;
    if (piece.k_tiles == 0) return;
    Scale scale;
    Ahead ahead;
    scale.SetZeros(kSymmetricZero, kSymmetricZero);
    if (p.reload == 0) {
      // A block's tile may reach past the matrix, whose 16-row tiles end with its last strip.
      const int64_t tile16 = min(this->Tile16(piece), p.strips * kStripTiles - 1);
      const uint8_t* scales = p.weights + p.row_scales + tile16 * 32;
      Load(scale, scales, p.weights + p.row_zeros + tile16 * 16);
      ahead.scales = *reinterpret_cast<const __half2*>(scales + lane / 4 * 4);
    }
    const int of_unit = warp / 2 * (p.record_bytes << p.unit_shift) + warp % 2 * p.tile_bytes;
    uint32_t release = 0;
    WaitForUnit(at);
    ReadAhead(ahead, smem + kWideRing + at.stage * p.stage_bytes + of_unit, 0);
#pragma unroll 1
    for (int unit = 0; unit < piece.units; ++unit) {
      const int stage = kWideRing + at.stage * p.stage_bytes;
      const uint32_t here = empty + at.stage * 8;
      const int tiles = piece.Tiles(p, unit);
      at.Next(p.stages);
#pragma unroll 1
      for (int t = 0; t < tiles; ++t) {
        const uint8_t* weights = smem + stage + of_unit + t * p.record_bytes;
        const uint64_t operand =
            SwizzledOperand(full + stage + p.x_offset + t * (kTokens * kTileCols * 2));
        Multiply(ahead, 0, weights, operand, scale);
        WarpgroupWait<Shape::kPending>();
        // The products of the unit before this tile's are done.
        if (release != 0) Release(release), release = 0;
        Multiply(ahead, 1, weights, operand + kNextHalf, scale);
        if (t + 1 < tiles) {
          ReadAhead(ahead, weights + p.record_bytes, 0);
        } else if (unit + 1 < piece.units) {
          WaitForUnit(at);
          ReadAhead(ahead, smem + kWideRing + at.stage * p.stage_bytes + of_unit, 0);
        }
        WarpgroupWait<Shape::kPending>();
      }
      release = here;
    }
    WarpgroupWait<0>();
    PinRegisters(sums);
    Release(release);
    if constexpr (kNormed) {
#pragma unroll
      for (int j = 0; j < Base::kSums; ++j) sums[j] *= p.norm.factor;
    }
  }

  __device__ __forceinline__ void Run() {
    WideStage at;
    const int pieces = WidePiece::Count(p, blockIdx.x);
#pragma unroll 1
    for (int i = 0; i < pieces; ++i) {
      WidePiece piece(p, blockIdx.x, i);
      // For the compiler to see that all lanes have the same: see WaitForUnit().
      piece.units = __shfl_sync(~0u, piece.units, 0);
      piece.k_tiles = __shfl_sync(~0u, piece.k_tiles, 0);
      Accumulate(piece, at);
      if (p.parts > 1) this->MeetPart(smem, full + kWideRing, empty + p.stages * 8);
      if (!piece.ends) {
        this->StorePartial();
        continue;
      }
#pragma unroll 1
      for (int c = piece.FirstCluster(p, blockIdx.x); c < p.Cluster(blockIdx.x); ++c)
        this->AddPartial(c);
      this->Store(piece);
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace babai::cuda
