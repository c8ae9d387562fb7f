// The kernel of slice_gemm.h.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/slice_gemm.h"
#include "kernels/cuda/store_sums.cuh"

namespace babai::cuda {

constexpr int kXRowBytes = kTileCols * 2;  // of a token in a k tile

constexpr int kPassStrips = 4;  // that a warp takes side by side: their sums stay in registers

// What the host works out once a launch: a division here costs every warp tens of instructions, in
// a kernel that has only thousands.
struct SliceGemmParams {
  const void* x;
  const uint8_t* weights;
  void* y;
  int m, n, k;
  int warps, ahead;
  int x_slots;     // k tiles of x that a warp has room for
  Shares strips;   // of a block
  Shares k_tiles;  // of a warp
  int64_t strip_bytes, row_scales, row_zeros;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  GemmEnds ends;
  int x_tiles, mail;  // offsets in shared memory, behind the rings
};

// A warp's part of the block's work: all of its strips at some k tiles. A pass is the strips that
// all warps work on at a time.
struct WarpWork {
  int warp, lane;
  int begin, end;      // k tiles
  int strip0, strips;  // the block's

  __device__ __forceinline__ explicit WarpWork(const SliceGemmParams& p) {
    // Broadcast, so that the compiler knows a warp's own numbers to be the same in all its lanes.
    warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
    begin = p.k_tiles.Begin(warp), end = p.k_tiles.Begin(warp + 1);
    strip0 = p.strips.Begin(blockIdx.x), strips = p.strips.Begin(blockIdx.x + 1) - strip0;
  }
  __device__ __forceinline__ int PassEnd(int first) const {
    return min(first + kPassStrips, strips);
  }
};

// What fills a warp's ring: a unit is up to kUnit strips' records at the same columns. With the
// first unit of a k tile come its columns of x.
template <int kBits, int kGroup, bool kAsymmetric>
struct SliceCopier {
  static constexpr int kRecord = kRecordBytes<kBits, kGroup, kAsymmetric>;
  static constexpr int kUnit = kUnitRecords[kBits], kStage = kUnit * kRecord;
  static constexpr int kRing = kRingUnits[kBits] * kStage;
  static constexpr int kAhead = kRingUnits[kBits] - 1;  // units under way while one is worked on
  static constexpr int kRound = kLanes * 16;            // bytes that a warp copies at once

  const SliceGemmParams& p;
  const WarpWork& work;
  uint32_t to, ring_end;            // to: this lane's part of the next stage
  int strip, pass, pass_end, tile;  // the next unit, and its pass
  const uint8_t* from;
  bool any;
  int x_tile, x_slot = 0;

  __device__ __forceinline__ SliceCopier(const SliceGemmParams& params, const WarpWork& w,
                                         uint32_t smem)
      : p(params), work(w) {
    to = smem + work.warp * kRing + work.lane * 16, ring_end = smem + (work.warp + 1) * kRing;
    tile = x_tile = work.begin;
    pass = 0, pass_end = work.PassEnd(0);
    any = work.strips > 0 && work.begin < work.end;
    Locate();
  }
  __device__ __forceinline__ void Locate() {
    strip = pass;
    from = p.weights + (work.strip0 + strip) * p.strip_bytes + tile * kRecord + work.lane * 16;
  }
  // The next k tile of x, in swizzled rows of 256 bytes; past x's last column zeros.
  __device__ __forceinline__ void CopyX(uint32_t x_tiles) {
    const int chunk = work.lane % 16, col = x_tile * kTileCols + chunk * 8;
    const bool valid = col < p.k;
    const uint8_t* x = static_cast<const uint8_t*>(p.x) + (valid ? col * 2 : 0);
    const uint32_t slot = x_tiles + x_slot * p.m * kXRowBytes;
#pragma unroll
    for (int i = 0; i < kSliceMaxTokens; i += 2) {
      const int token = i + work.lane / 16;
      if (token < p.m) {
        CopyAsync16OrZero(slot + XOffset(token, chunk), x + int64_t{token} * p.k * 2, valid);
      }
    }
    if (++x_tile == work.end) x_tile = work.begin;
    if (++x_slot == p.x_slots) x_slot = 0;
  }
  // Of 16 bytes: ldmatrix's eight rows lie in distinct banks.
  static __device__ __forceinline__ uint32_t XOffset(int token, int chunk) {
    return token * kXRowBytes + (chunk ^ token % 8) * 16;
  }
  // Whether the next unit is the first of its k tile.
  __device__ __forceinline__ bool StartsTile() const { return any && strip == pass; }
  __device__ __forceinline__ void CopyWeights() {
    if (any) {
#pragma unroll
      for (int u = 0; u < kUnit; ++u) {
        if (u > 0 && strip + u >= pass_end) break;
#pragma unroll
        for (int b = 0; b < kRecord; b += kRound) {
          if (b + kRound <= kRecord || work.lane * 16 < kRecord % kRound)
            CopyAsync16(to + u * kRecord + b, from + u * p.strip_bytes + b);
        }
      }
      strip += kUnit, from += kUnit * p.strip_bytes;
      if (strip >= pass_end) {
        if (++tile == work.end) {
          tile = work.begin, pass = pass_end, pass_end = work.PassEnd(pass);
          any = pass < work.strips;
        }
        Locate();
      }
    }
    to += kStage;
    if (to >= ring_end) to -= kRing;
  }
};

template <int kBits, typename T, int kGroup, bool kAsymmetric>
__global__ void __launch_bounds__(kSliceMaxWarps* kLanes, 1)
    SliceGemmKernel(const __grid_constant__ SliceGemmParams p) {
  using Copier = SliceCopier<kBits, kGroup, kAsymmetric>;
  constexpr int kUnit = Copier::kUnit;
  extern __shared__ __align__(128) uint8_t smem[];
  // At once: the next kernel's blocks come as soon as there is room, and copy meanwhile.
  LetNextKernelStart();
  const WarpWork work(p);
  Copier copier(p, work, SharedAddress(smem));
  // Weights are constant, so these need not wait for the preceding kernel. A unit at a time: all at
  // once would queue in front of that kernel's last stores and of x, for which everything waits.
  int x_due = 0;
#pragma unroll 1
  for (int i = 0; i < p.ahead; ++i) {
    if (i > 0) CopyAsyncWait<0>();
    x_due += copier.StartsTile();
    copier.CopyWeights();
    CopyAsyncCommit();
  }
  const int x_offset = p.x_tiles + work.warp * p.x_slots * p.m * kXRowBytes;
  const uint32_t x_tiles = SharedAddress(smem) + x_offset;
  float4* const mail = reinterpret_cast<float4*>(smem + p.mail) + work.lane;
  WaitForPrecedingKernel();
  // The rest of what is to be under way: a group of copies a unit, with x.
#pragma unroll 1
  for (int i = 0; i < Copier::kAhead; ++i) {
    if (i < p.ahead ? i < x_due : copier.StartsTile()) copier.CopyX(x_tiles);
    if (i >= p.ahead) copier.CopyWeights();
    CopyAsyncCommit();
  }

  // Row lane % 8 of matrix lane / 8.
  const uint32_t x_lane = x_tiles + Copier::XOffset(min(work.lane % 8, p.m - 1), work.lane / 8);
  const uint8_t* stage = smem + work.warp * Copier::kRing;
  const uint8_t* const ring_end = stage + Copier::kRing;
  int x_slot = 0;
#pragma unroll 1
  for (int first = 0; first < work.strips; first += kPassStrips) {
    const int strips = work.PassEnd(first) - first;
    float total[kPassStrips][kStripTiles][1][4] = {};
    constexpr int kSums = TileGroups<kGroup>::kCount;
    float x_sums[kSums][1][4] = {};
#pragma unroll 1
    for (int tile = work.begin; tile < work.end; ++tile) {
      XHalf x[2][1];
      const uint8_t* unit = nullptr;
#pragma unroll
      for (int s = 0; s < kPassStrips; ++s) {
        if (s >= strips) break;
        if (s % kUnit == 0) {
          CopyAsyncWait<Copier::kAhead - 1>();
          // Every lane's part of this unit is there, and of the one before every lane has its words
          // in registers: its stage may be overwritten.
          __syncwarp();
          if (copier.StartsTile()) copier.CopyX(x_tiles);
          copier.CopyWeights();
          CopyAsyncCommit();
          unit = stage;
          stage += Copier::kStage;
          if (stage == ring_end) stage -= Copier::kRing;
        }
        if (s == 0) {
          const uint32_t from = x_lane + x_slot * p.m * kXRowBytes;
          if (++x_slot == p.x_slots) x_slot = 0;
          LoadMatrix4(x[0][0][0], from), LoadMatrix4(x[0][0][1], from ^ 64);
          LoadMatrix4(x[1][0][0], from + 128), LoadMatrix4(x[1][0][1], (from + 128) ^ 64);
#pragma unroll
          for (int step = 0; step < 2 * kStepsPerHalf; ++step) {
            float(&sums)[1][4] = x_sums[step / TileGroups<kGroup>::kSteps];
            if (kGroup != 0 && step % TileGroups<kGroup>::kSteps == 0) Clear(sums);
            SumX<T>(x[step / kStepsPerHalf], step % kStepsPerHalf, sums);
          }
        }
        const auto load_x = [&](int half, XHalf(&to)[1]) { __builtin_memcpy(to, x[half], 32); };
        AddRecord<kBits, T, kGroup, false>(unit + s % kUnit * Copier::kRecord,
                                           Copier::kRecord / kStripTiles, load_x, x_sums,
                                           kAsymmetric, p.exponent, work.lane, total[s]);
      }
    }

    // The warps' sums meet, in their order.
    if (first > 0) __syncthreads();  // what was there is read
#pragma unroll
    for (int s = 0; s < kPassStrips; ++s) {
      if (s >= strips) break;
#pragma unroll
      for (int i = 0; i < kStripTiles; ++i) {
        if constexpr (kGroup == 0) {
          const int64_t row_tile = (work.strip0 + first + s) * kStripTiles + i;
          ScaleRows<kBits, T>(total[s][i], x_sums[0],
                              {p.weights + p.row_scales + row_tile * kTileRows * 2,
                               p.weights + p.row_zeros + row_tile * kTileRows},
                              kAsymmetric, work.lane);
        }
        const float(&v)[4] = total[s][i][0];
        mail[((s * kStripTiles + i) * p.warps + work.warp) * kLanes] =
            make_float4(v[0], v[1], v[2], v[3]);
      }
    }
    __syncthreads();
    using Unit = TotalUnit<kBits, T>;
#pragma unroll 1
    for (int i = work.warp; i < strips * kStripTiles; i += p.warps) {
      float sum[4] = {};
      // Without a branch, so that the loads do not wait for one another.
#pragma unroll
      for (int w = 0; w < kSliceMaxWarps; ++w) {
        const float4 v = w < p.warps ? mail[(i * p.warps + w) * kLanes] : make_float4(0, 0, 0, 0);
        sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
      }
      sum[0] *= Unit::kRow, sum[1] *= Unit::kRow, sum[2] *= Unit::kRow8, sum[3] *= Unit::kRow8;
      StoreSums<T>(p.ends, p.y, p.m, p.n, work.lane % 4 * 2,
                   (work.strip0 + first) * kStripRows + i * kTileRows + work.lane / 4, sum);
    }
  }
}

// Instantiated once a width, in slice_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchSliceGemmBits(const SliceGemmParams& p, const PackedShape& shape, Dtype dtype,
                                const LaunchConfig& config) {
  return ForFormat(dtype, shape.group, [&]<typename T, int kGroup>() {
    return shape.asymmetric ? LaunchLarge(SliceGemmKernel<kBits, T, kGroup, true>, config, p)
                            : LaunchLarge(SliceGemmKernel<kBits, T, kGroup, false>, config, p);
  });
}

}  // namespace babai::cuda
