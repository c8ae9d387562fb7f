// The kernel of slice_gemm.h.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/slice_gemm.h"
#include "kernels/cuda/store_sums.cuh"

namespace babai::cuda {

constexpr int kXRowBytes = kTileCols * 2;  // of a token in a k tile

// What the host works out once a launch: a division here costs every warp tens of instructions, in
// a kernel that has only thousands.
struct SliceGemmParams {
  const void* x;
  const uint8_t* weights;
  void* y;
  int m, n, k;
  int warps, ahead;
  int x_row_bytes;
  int x_tiles;     // k tiles of x that a warp has room for, and is ahead
  Shares strips;   // of a team
  Shares k_tiles;  // of a warp of a team
  int64_t strip_bytes, row_scales, row_zeros;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  GemmEnds ends;
  uint32_t* workspace;
  int x_offset;  // in shared memory, behind the rings
  int mail;      // likewise; with one pass 0: they have served by then
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
    const int part = blockIdx.x * p.warps + warp;
    begin = p.k_tiles.Begin(part), end = p.k_tiles.Begin(part + 1);
    strip0 = p.strips.Begin(blockIdx.y), strips = p.strips.Begin(blockIdx.y + 1) - strip0;
  }
  __device__ __forceinline__ int PassEnd(int first) const {
    return min(first + kPassStrips, strips);
  }
};

// What copies a warp's x, a k tile at a time, and the units of its ring: up to kUnit strips'
// records at the same columns.
template <int kBits, int kGroup, bool kAsymmetric, int kEights>
struct SliceCopier {
  static constexpr int kRecord = kRecordBytes<kBits, kGroup, kAsymmetric>;
  static constexpr int kUnit = SliceUnit(kBits, kEights), kStage = kUnit * kRecord;
  static constexpr int kRing = SliceRing(kBits, kEights) * kStage;
  static constexpr int kAhead = SliceRing(kBits, kEights) - 1;  // under way while one is worked on
  static constexpr int kRound = kLanes * 16;                    // bytes that a warp copies at once

  const SliceGemmParams& p;
  const WarpWork& work;
  int strip, pass, pass_end, tile;  // the next unit, and its pass
  const uint8_t *from, *tile_from;  // this lane's part of it, and of its k tile's first
  bool any;
  int x_tile;

  __device__ __forceinline__ SliceCopier(const SliceGemmParams& params, const WarpWork& w)
      : p(params), work(w) {
    tile = x_tile = work.begin;
    strip = pass = 0, pass_end = work.PassEnd(0);
    any = work.strips > 0 && work.begin < work.end;
    Locate();
  }
  __device__ __forceinline__ void Locate() {
    from = tile_from =
        p.weights + (work.strip0 + strip) * p.strip_bytes + tile * kRecord + work.lane * 16;
  }
  // The next k tile of x, in swizzled rows of 256 bytes; past x's last column and token zeros, for
  // which nothing is read.
  __device__ __forceinline__ void CopyX(uint32_t to) {
    const int first = work.lane / 16, chunk = work.lane % 16, col = x_tile * kTileCols + chunk * 8;
    const bool valid = col < p.k;
    const uint8_t* const x = static_cast<const uint8_t*>(p.x) + (valid ? col * 2 : 0);
    to += XOffset(first, chunk);
#pragma unroll
    for (int i = 0; i < kEights * 8; i += 2) {
      const bool any_x = valid && first + i < p.m;
      // XOffset(first + i, chunk): i touches other bits of the chunk than the first token does.
      CopyAsync16OrZero((to ^ i % 8 * 16) + i * kXRowBytes,
                        x + int64_t{any_x ? first + i : 0} * p.x_row_bytes, any_x);
    }
    if (++x_tile == work.end) x_tile = work.begin;
  }
  // Of 16 bytes: ldmatrix's eight rows lie in distinct banks.
  static __device__ __forceinline__ uint32_t XOffset(int token, int chunk) {
    return token * kXRowBytes + (chunk ^ token % 8) * 16;
  }
  __device__ __forceinline__ void CopyRecord(uint32_t to, const uint8_t* record) const {
#pragma unroll
    for (int b = 0; b + kRound <= kRecord; b += kRound) CopyAsync16(to + b, record + b);
    constexpr int kRest = kRecord % kRound, kWhole = kRecord - kRest;
    if (kRest > 0) CopyAsync16If(to + kWhole, record + kWhole, work.lane * 16 < kRest);
  }
  // The next unit.
  __device__ __forceinline__ void CopyWeights(uint32_t to) {
    if (!any) return;
    to += work.lane * 16;
    CopyRecord(to, from);
    if (kUnit > 1 && strip + 1 < pass_end) CopyRecord(to + kRecord, from + p.strip_bytes);
    strip += kUnit, from += kUnit * p.strip_bytes;
    if (strip < pass_end) return;
    strip = pass, from = tile_from += kRecord;
    if (++tile < work.end) return;
    tile = work.begin, strip = pass = pass_end, pass_end = work.PassEnd(pass);
    any = pass < work.strips;
    Locate();
  }
};

// The block's sums of the strips of a pass, out of all warps' mail: the first of a team leaves them
// to the second, which stores.
template <int kBits, typename T, int kEights>
__device__ __forceinline__ void FinishPass(const SliceGemmParams& p, const WarpWork& work,
                                           const float4* mail, int first, int strips) {
  using Unit = TotalUnit<kBits, T>;
#pragma unroll 1
  for (int i = work.warp; i < strips * kStripTiles * kEights; i += p.warps) {
    float sum[4] = {};
    // Without a branch, so that the loads do not wait for one another.
#pragma unroll
    for (int w = 0; w < kSliceWarps<kEights>; ++w) {
      const float4 v = w < p.warps ? mail[(i * p.warps + w) * kLanes] : make_float4(0, 0, 0, 0);
      sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
    }
    // Code that is not there is not fetched: it counts even where it is not run.
    if constexpr (kEights > 1) {
      if (gridDim.x == 2) {
        constexpr int kTeamWords = kPassStrips * kStripRows * kSliceMaxTokens;
        uint32_t* const at = p.workspace + blockIdx.y * kTeamWords + (i * kLanes + work.lane) * 4;
        if (blockIdx.x == 0) {
          StorePartialSums(at, sum);
          continue;
        }
        AddPartialSums<1>(at, 0, sum);
      }
    }
    sum[0] *= Unit::kRow, sum[1] *= Unit::kRow, sum[2] *= Unit::kRow8, sum[3] *= Unit::kRow8;
    StoreSums<T>(p.ends, p.y, p.m, p.n, i % kEights * 8 + work.lane % 4 * 2,
                 (work.strip0 + first) * kStripRows + i / kEights * kTileRows + work.lane / 4, sum);
  }
}

template <int kBits, typename T, int kGroup, bool kAsymmetric, int kEights>
__global__ void __launch_bounds__(kSliceWarps<kEights>* kLanes, 1)
    SliceGemmKernel(const __grid_constant__ SliceGemmParams p) {
  using Copier = SliceCopier<kBits, kGroup, kAsymmetric, kEights>;
  constexpr int kUnit = Copier::kUnit;
  SHARED_MEMORY(smem);
  // At once: the next kernel's blocks come as soon as there is room, and copy meanwhile.
  LetNextKernelStart();
  const WarpWork work(p);
  Copier copier(p, work);
  const uint32_t ring = SharedAddress(smem) + work.warp * Copier::kRing;
  // Weights are constant, so these need not wait for the preceding kernel. A unit at a time: all at
  // once would queue in front of that kernel's last stores and of x, for which everything waits.
#pragma unroll 1
  for (int i = 0; i < p.ahead; ++i) {
    if (i > 0) CopyAsyncWait<0>();
    copier.CopyWeights(ring + i * Copier::kStage);
    CopyAsyncCommit();
  }
  constexpr uint32_t kXBytes = kEights * 8 * kXRowBytes;
  const uint32_t x_slots = SharedAddress(smem) + p.x_offset + work.warp * p.x_tiles * kXBytes;
  float4* const mail = reinterpret_cast<float4*>(smem + p.mail) + work.lane;
  WaitForPrecedingKernel();
  // The rest of what is to be under way: a group of copies a unit, the first with x.
  const int passes = (work.strips + kPassStrips - 1) / kPassStrips;
  int x_left = passes * (work.end - work.begin);  // k tiles to copy
#pragma unroll 1
  for (int i = 0; i < p.x_tiles && x_left > 0; ++i, --x_left) copier.CopyX(x_slots + i * kXBytes);
#pragma unroll 1
  for (int i = 0; i < Copier::kAhead; ++i) {
    if (i >= p.ahead) copier.CopyWeights(ring + i * Copier::kStage);
    CopyAsyncCommit();
  }

  const uint32_t x_lane = Copier::XOffset(work.lane % 8, work.lane / 8);  // row, matrix
  uint32_t x_slot = x_slots;
  const uint8_t* stage = smem + work.warp * Copier::kRing;
  const uint8_t* const ring_end = stage + Copier::kRing;
  uint32_t done = ring + Copier::kAhead * Copier::kStage;  // the stage before: may be overwritten
  // What a group's products start from saves instructions but is waited for before them: up to
  // eight tokens that costs more.
  constexpr Zeros kZeros = kAsymmetric || kEights == 1 ? Zeros::kSumGiven : Zeros::kStart;
  using F = Fragment<kBits, T>;
  const SumWeights sum_weights(kZeros == Zeros::kSumGiven ? kOnes<T> : F::kMinusZero,
                               kZeros == Zeros::kSumGiven ? kOnes<T> : F::kMinusZero8);
#pragma unroll 1
  for (int first = 0; first < work.strips; first += kPassStrips) {
    const int strips = work.PassEnd(first) - first;
    float total[kPassStrips * kStripTiles][kEights][4] = {};
    constexpr int kSums = TileGroups<kGroup>::kCount;
    float x_sums[kSums][kEights][4] = {};
#pragma unroll 1
    for (int tile = work.begin; tile < work.end; ++tile) {
      XHalf x[2][kEights];
#pragma unroll
      for (int s = 0; s < kPassStrips; s += kUnit) {
        if (s >= strips) break;
        // Every lane's part of this unit, and of x, is there; of the unit before every lane has its
        // words in registers.
        static_assert(Copier::kAhead <= 2, "or x, a group before its unit's, may not be there");
        CopyAsyncWait<Copier::kAhead - 1>();
        __syncwarp();
        if (s == 0) {
#pragma unroll
          for (int e = 0; e < kEights; ++e) {
            const uint32_t from = x_slot + x_lane + e * 8 * kXRowBytes;
            LoadMatrix4(x[0][e][0], from), LoadMatrix4(x[0][e][1], from ^ 64);
            LoadMatrix4(x[1][e][0], from + 128), LoadMatrix4(x[1][e][1], (from + 128) ^ 64);
          }
          __syncwarp();
          if (--x_left >= 0) copier.CopyX(x_slot);
          x_slot += kXBytes;
          if (x_slot == x_slots + p.x_tiles * kXBytes) x_slot = x_slots;
          CopyAsyncCommit();
        }
        copier.CopyWeights(done);
        CopyAsyncCommit();
        done = SharedAddress(stage);
        if (s == 0) {
#pragma unroll
          for (int step = 0; step < 2 * kStepsPerHalf; ++step) {
            float (&sums)[kEights][4] = x_sums[step / TileGroups<kGroup>::kSteps];
            if (kGroup != 0 && step % TileGroups<kGroup>::kSteps == 0) Clear(sums);
            SumX<T>(x[step / kStepsPerHalf], step % kStepsPerHalf, sum_weights.a, sums);
          }
        }
        const auto load_x = [&](int half, XHalf(&to)[kEights]) {
#pragma unroll
          for (int i = 0; i < kEights * 8; ++i)
            to[i / 8][i / 4 % 2][i % 4] = x[half][i / 8][i / 4 % 2][i % 4];
        };
        const auto add = [&](auto& sums) {
          AddRecord<kBits, T, kGroup, kZeros>(stage, Copier::kRecord / kStripTiles, load_x, x_sums,
                                              kAsymmetric, p.exponent, work.lane, sums);
        };
        using One = float[kStripTiles][kEights][4];
        using Two = float[2 * kStripTiles][kEights][4];
        if constexpr (kUnit == 2) {
          if (s + 1 < strips) {
            add(reinterpret_cast<Two&>(total[s * kStripTiles]));
          } else {
            add(reinterpret_cast<One&>(total[s * kStripTiles]));
          }
        } else {
          add(reinterpret_cast<One&>(total[s * kStripTiles]));
        }
        stage += Copier::kStage;
        if (stage == ring_end) stage -= Copier::kRing;
      }
    }

    // The warps' sums meet, in their order.
    if (first > 0 || p.mail == 0) __syncthreads();  // what was there is read
#pragma unroll
    for (int s = 0; s < kPassStrips; ++s) {
      if (s >= strips) break;
#pragma unroll
      for (int i = 0; i < kStripTiles; ++i) {
        float (&sums)[kEights][4] = total[s * kStripTiles + i];
        if constexpr (kGroup == 0) {
          const int64_t row_tile = (work.strip0 + first + s) * kStripTiles + i;
          ScaleRows<kBits, T, kZeros>(sums, x_sums[0],
                                      {p.weights + p.row_scales + row_tile * kTileRows * 2,
                                       p.weights + p.row_zeros + row_tile * kTileRows},
                                      kAsymmetric, work.lane);
        }
#pragma unroll
        for (int e = 0; e < kEights; ++e) {
          mail[(((s * kStripTiles + i) * kEights + e) * p.warps + work.warp) * kLanes] =
              make_float4(sums[e][0], sums[e][1], sums[e][2], sums[e][3]);
        }
      }
    }
    __syncthreads();
    FinishPass<kBits, T, kEights>(p, work, mail, first, strips);
  }
}

// Instantiated once a width, in slice_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchSliceGemmBits(const SliceGemmParams& p, const PackedShape& shape, Dtype dtype,
                                const LaunchConfig& config) {
  return ForFormat(dtype, shape.group, [&]<typename T, int kGroup>() {
    const auto launch = [&]<int kEights>() {
      return shape.asymmetric
                 ? LaunchLarge(SliceGemmKernel<kBits, T, kGroup, true, kEights>, config, p)
                 : LaunchLarge(SliceGemmKernel<kBits, T, kGroup, false, kEights>, config, p);
    };
    return SliceEights(p.m) == 1 ? launch.template operator()<1>()
                                 : launch.template operator()<2>();
  });
}

}  // namespace babai::cuda
