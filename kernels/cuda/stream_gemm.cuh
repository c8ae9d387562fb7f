// The kernel of stream_gemm.h.
#pragma once

#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

constexpr int kStreamThreads = kStreamWarps * kLanes;
constexpr int kXPadBytes = 16;  // a row stride of 16 mod 128 bytes: ldmatrix without conflicts

// What the host works out once a launch. "Local" means within a block's share.
struct StreamGemmParams {
  const void* x;
  const uint8_t* weights;
  void* y;
  int m, n, k;
  int strips, k_tiles;
  int strip_groups;  // of kTiles strips, over the whole matrix
  int splits, clusters, stages;
  int tile_bytes;
  bool asymmetric;
  int64_t row_meta_offset;
  // offsets in shared memory
  int ring, x_rows, x_sums, slots, inbox;
};

__host__ __device__ inline int SlotColumn(int tiles) { return tiles * kTileRows + 4; }

template <typename T>
__device__ __forceinline__ T FromFloat(float v) {
  if constexpr (__is_same(T, __half))
    return __float2half_rn(v);
  else
    return __float2bfloat16_rn(v);
}
template <typename T>
__device__ __forceinline__ float2 PairToFloat(uint32_t v) {
  if constexpr (__is_same(T, __half))
    return __half22float2(*reinterpret_cast<__half2*>(&v));
  else
    return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&v));
}

// How a block's warps share m tokens: warp w serves token w % m, as part w / m of `parts`.
struct TokenShare {
  int token, part, parts;
  __device__ __forceinline__ TokenShare(int warp, int m)
      : token(warp % m), part(warp / m), parts(kStreamWarps / m) {}
};

// Brings this block's columns of x into shared memory, zeros behind the last, and sums each group
// (a whole tile when kGroup is 0) per token: that sum, times the zero point, is what the integer
// codes leave to be subtracted.
template <typename T, int kGroup>
__device__ __forceinline__ void LoadX(const StreamGemmParams& p, int warp, int lane, int col0,
                                      int cols, uint8_t* rows, float* sums) {
  constexpr int kLanesPerGroup = (kGroup == 0 ? kTileCols : kGroup) / 8;
  const TokenShare share(warp, p.m);
  if (share.part >= share.parts) return;
  const int chunks = cols / 8;  // of 16 bytes, a multiple of 16
  const uint8_t* x = static_cast<const uint8_t*>(p.x) + (int64_t{share.token} * p.k + col0) * 2;
  uint8_t* row = rows + share.token * (cols * 2 + kXPadBytes);
  const int valid = min(chunks, (p.k - col0) / 8), step = share.parts * kLanes;
  constexpr int kBatch = 8;  // loads in flight a thread
#pragma unroll 1
  for (int base = share.part * kLanes + lane; base - lane < chunks; base += kBatch * step) {
    uint4 v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int c = base + i * step;
      v[i] = make_uint4(0, 0, 0, 0);
      if (c < valid) v[i] = __ldcg(reinterpret_cast<const uint4*>(x + c * 16));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int c = base + i * step;
      if (c - lane >= chunks) break;
      const float2 a0 = PairToFloat<T>(v[i].x), a1 = PairToFloat<T>(v[i].y);
      const float2 a2 = PairToFloat<T>(v[i].z), a3 = PairToFloat<T>(v[i].w);
      float sum = ((a0.x + a0.y) + (a1.x + a1.y)) + ((a2.x + a2.y) + (a3.x + a3.y));
#pragma unroll
      for (int o = 1; o < kLanesPerGroup; o *= 2) sum += __shfl_xor_sync(~0u, sum, o);
      if (c >= chunks) continue;
      *reinterpret_cast<uint4*>(row + c * 16) = v[i];
      if (c % kLanesPerGroup == 0) sums[c / kLanesPerGroup * kStreamMaxTokens + share.token] = sum;
    }
  }
}

// One warp's ring: unit u is kTiles tiles, of neighbouring strips at one k tile. Lane i < kTiles
// copies tile i.
template <int kTiles>
struct UnitStream {
  uint32_t bars, buffers;  // shared addresses of this warp's barriers and stages
  const uint8_t* source;   // this lane's tile of unit `next`
  int64_t next_group;      // what leads from a group's last tile to the next group's first
  int next, end;           // the next unit to copy, the end of this warp's run
  int k_tile, k_tiles;     // of `next`, of a group
  int tiles, strips_left;  // of this unit; from its first strip to the matrix' end
  int tile_bytes, stages, stage = 0;

  __device__ __forceinline__ void CopyNext(int lane) {
    if (next >= end) return;
    const uint32_t dst = buffers + stage * kTiles * tile_bytes, bar = bars + stage * 8;
    tiles = min(kTiles, strips_left);  // past the last strip: left as it is, never written to y
#if __CUDA_ARCH__ >= 900
    if (lane == 0) BarrierArriveExpect(bar, tiles * tile_bytes);
    if (lane < tiles) BulkCopy(dst + lane * tile_bytes, source, tile_bytes, bar);
#else
    for (int i = 0; i < tiles; ++i) {
      const uint8_t* from =
          reinterpret_cast<const uint8_t*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(source), i));
      for (int b = lane * 16; b < tile_bytes; b += kLanes * 16)
        CopyAsync16(dst + i * tile_bytes + b, from + b);
    }
    CopyAsyncArrive(bar);
#endif
    ++next, source += tile_bytes;
    if (++stage == stages) stage = 0;
    if (++k_tile == k_tiles) k_tile = 0, source += next_group, strips_left -= kTiles;
  }
};

// One lane's sums: kTiles tiles, rows g and g + 8, tokens 2t and 2t + 1.
template <int kTiles>
using Sums = float[kTiles][4];

template <int kTiles>
__device__ __forceinline__ void Clear(Sums<kTiles>& s) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0;
}

// Adds one unit to `total`, scaled (kGroup > 0), or unscaled (kGroup == 0; then `x_sum` collects
// what the zero point multiplies).
template <int kBits, typename T, int kGroup, int kTiles>
__device__ __forceinline__ void AddUnit(const StreamGemmParams& p, const uint8_t* unit,
                                        uint32_t x_lane, const float* sums, int lane,
                                        Sums<kTiles>& total, float2& x_sum) {
  using F = Fragment<kBits, T>;
  constexpr int kSteps = kTileCols / kStepCols;
  constexpr int kStepsPerGroup = kGroup == 0 ? kSteps : kGroup / kStepCols;
  constexpr int kCodeBytes = kTileRows * kTileCols * kBits / 8;
  constexpr int kGroups = kGroup == 0 ? 0 : kTileCols / kGroup;
  const int g = lane / 4, t = lane % 4;
  Sums<kTiles> acc;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t b[2][4];
    LoadMatrix4(b[0], x_lane + half * kHalfCols * 2);
    LoadMatrix4(b[1], x_lane + half * kHalfCols * 2 + 64);
    uint32_t w[kTiles][kBits];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      LoadWords<kBits>(w[i], unit + i * p.tile_bytes + half * kCodeBytes / 2, lane);
#pragma unroll
    for (int step = 0; step < kStepsPerHalf; ++step) {
      const int at = half * kStepsPerHalf + step, in_group = at % kStepsPerGroup,
                group = at / kStepsPerGroup;
      if (in_group == 0 && kGroup != 0) {
        // The accumulators start from minus the zero point's share (see dequant.cuh).
        const float2 xs = *reinterpret_cast<const float2*>(sums + group * kStreamMaxTokens + 2 * t);
        constexpr float kZero = -F::kUnit * (F::kBias + F::kSymmetricZero),
                        kZero8 = -F::kUnit * (F::kBias + F::kRow8 * F::kSymmetricZero);
        const float symmetric[4] = {kZero * xs.x, kZero * xs.y, kZero8 * xs.x, kZero8 * xs.y};
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[i][j] = symmetric[j];
        }
        if (p.asymmetric) {
#pragma unroll
          for (int i = 0; i < kTiles; ++i) {
            const uchar2 z = *reinterpret_cast<const uchar2*>(unit + i * p.tile_bytes + kCodeBytes +
                                                              kGroups * 32 + group * 16 + 2 * g);
            const float z0 = -F::kUnit * (F::kBias + z.x),
                        z8 = -F::kUnit * (F::kBias + F::kRow8 * z.y);
            acc[i][0] = z0 * xs.x, acc[i][1] = z0 * xs.y, acc[i][2] = z8 * xs.x,
            acc[i][3] = z8 * xs.y;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        uint32_t a[4];
        if (step == 0) Dequantize<kBits, T, 0>(a, w[i]);
        if (step == 1) Dequantize<kBits, T, 1>(a, w[i]);
        if (step == 2) Dequantize<kBits, T, 2>(a, w[i]);
        if (step == 3) Dequantize<kBits, T, 3>(a, w[i]);
        Mma<T>(kGroup == 0 ? total[i] : acc[i], a, b[step / 2][step % 2 * 2],
               b[step / 2][step % 2 * 2 + 1]);
      }
      if (in_group == kStepsPerGroup - 1 && kGroup != 0) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const float2 s = __half22float2(*reinterpret_cast<const __half2*>(
              unit + i * p.tile_bytes + kCodeBytes + group * 32 + 4 * g));
          total[i][0] = fmaf(s.x, acc[i][0], total[i][0]),
          total[i][1] = fmaf(s.x, acc[i][1], total[i][1]);
          total[i][2] = fmaf(s.y, acc[i][2], total[i][2]),
          total[i][3] = fmaf(s.y, acc[i][3], total[i][3]);
        }
      }
    }
  }
  if constexpr (kGroup == 0) {
    const float2 xs = *reinterpret_cast<const float2*>(sums + 2 * t);
    x_sum.x += xs.x, x_sum.y += xs.y;
  }
}

// Puts a warp's sums of one strip group into its slot, [token][row], in units of y.
template <int kBits, typename T, int kGroup, int kTiles>
__device__ __forceinline__ void StoreSlot(const StreamGemmParams& p, int strip0,
                                          Sums<kTiles>& total, float2& x_sum, float* slot,
                                          int lane) {
  using F = Fragment<kBits, T>;
  constexpr float kInverse = 1 / F::kUnit, kInverse8 = 1 / (F::kUnit * F::kRow8);
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    float f0 = kInverse, f8 = kInverse8;
    if constexpr (kGroup == 0) {
      const int strip = min(strip0 + i, p.strips - 1);
      const uint8_t* scales = p.weights + p.row_meta_offset + int64_t{strip} * kTileRows * 2;
      const uint8_t* zeros = p.weights + p.row_meta_offset + int64_t{p.strips} * kTileRows * 2 +
                             int64_t{strip} * kTileRows;
      const float2 s = __half22float2(*reinterpret_cast<const __half2*>(scales + 4 * g));
      float z0 = F::kSymmetricZero, z8 = F::kSymmetricZero;
      if (p.asymmetric) z0 = zeros[2 * g], z8 = zeros[2 * g + 1];
      z0 = F::kUnit * (F::kBias + z0), z8 = F::kUnit * (F::kBias + F::kRow8 * z8);
      total[i][0] = fmaf(-z0, x_sum.x, total[i][0]), total[i][1] = fmaf(-z0, x_sum.y, total[i][1]);
      total[i][2] = fmaf(-z8, x_sum.x, total[i][2]), total[i][3] = fmaf(-z8, x_sum.y, total[i][3]);
      f0 *= s.x, f8 *= s.y;
    }
    const int column = SlotColumn(kTiles), row = i * kTileRows + g;
    if (2 * t < p.m)
      slot[2 * t * column + row] = total[i][0] * f0,
                            slot[2 * t * column + row + 8] = total[i][2] * f8;
    if (2 * t + 1 < p.m)
      slot[(2 * t + 1) * column + row] = total[i][1] * f0,
                                  slot[(2 * t + 1) * column + row + 8] = total[i][3] * f8;
  }
  Clear<kTiles>(total);
  x_sum = make_float2(0, 0);
}

// 128 registers a thread at most, so that the next kernel's block fits beside this one's.
template <int kBits, typename T, int kGroup, int kTiles>
__global__ void __launch_bounds__(kStreamThreads, 2)
    StreamGemmKernel(const __grid_constant__ StreamGemmParams p) {
  extern __shared__ __align__(128) uint8_t smem[];
  const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int cluster = blockIdx.x / p.splits, rank = blockIdx.x - cluster * p.splits;
  const int k_tile0 = rank * p.k_tiles / p.splits,
            k_tiles = (rank + 1) * p.k_tiles / p.splits - k_tile0;
  const int group0 = static_cast<int64_t>(cluster) * p.strip_groups / p.clusters;
  const int groups =
      static_cast<int>(static_cast<int64_t>(cluster + 1) * p.strip_groups / p.clusters) - group0;
  const int units = groups * k_tiles;
  const int begin = warp * units / kStreamWarps, end = (warp + 1) * units / kStreamWarps;

  // Fill the ring: weights are constant, so this need not wait for the preceding kernel.
  const int unit_bytes = kTiles * p.tile_bytes;
  const int64_t strip_bytes = int64_t{1} * p.k_tiles * p.tile_bytes;
  int group = k_tiles > 0 ? begin / k_tiles : 0, k_tile = begin - group * k_tiles;
  UnitStream<kTiles> stream;
  stream.bars = SharedAddress(smem) + warp * p.stages * 8;
  stream.buffers = SharedAddress(smem + p.ring) + warp * p.stages * unit_bytes;
  stream.source = p.weights + ((group0 + group) * kTiles + lane % kTiles) * strip_bytes +
                  int64_t{1} * (k_tile0 + k_tile) * p.tile_bytes;
  stream.next_group = kTiles * strip_bytes - int64_t{1} * k_tiles * p.tile_bytes;
  stream.next = begin, stream.end = end, stream.k_tile = k_tile, stream.k_tiles = k_tiles;
  stream.strips_left = p.strips - (group0 + group) * kTiles;
  stream.tile_bytes = p.tile_bytes, stream.stages = p.stages;
  constexpr int kArrivals =
#if __CUDA_ARCH__ >= 900
      1;  // the lane that announces the bytes
#else
      kLanes;
#endif
#pragma unroll 1
  for (int i = lane; i < p.stages; i += kLanes) BarrierInit(stream.bars + i * 8, kArrivals);
  BarrierInitFence();
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < p.stages; ++i) stream.CopyNext(lane);
  LetNextKernelStart();
  WaitForPrecedingKernel();

  LoadX<T, kGroup>(p, warp, lane, k_tile0 * kTileCols, k_tiles * kTileCols, smem + p.x_rows,
                   reinterpret_cast<float*>(smem + p.x_sums));
#if __CUDA_ARCH__ >= 900
  if (p.splits > 1) ClusterArrive();
#endif
  __syncthreads();

  // Walk this warp's units. Sums stay in registers while the strip group stays the same.
  constexpr int kGroupsPerTile = kGroup == 0 ? 1 : kTileCols / kGroup;
  float* slots = reinterpret_cast<float*>(smem + p.slots);
  const int slot_floats = SlotColumn(kTiles) * p.m;
  const int x_stride = k_tiles * kTileCols * 2 + kXPadBytes;
  const uint32_t x_lane =
      SharedAddress(smem + p.x_rows) + min(lane % 8, p.m - 1) * x_stride + lane / 8 * 16;
  const float* sums = reinterpret_cast<const float*>(smem + p.x_sums);
  Sums<kTiles> total;
  Clear<kTiles>(total);
  float2 x_sum = make_float2(0, 0);
  int stage = 0;
  uint32_t parity = 0;
#pragma unroll 1
  for (int u = begin; u < end; ++u) {
    BarrierWait(stream.bars + stage * 8, parity);
    AddUnit<kBits, T, kGroup, kTiles>(
        p, smem + p.ring + (warp * p.stages + stage) * unit_bytes, x_lane + k_tile * kTileCols * 2,
        sums + k_tile * kGroupsPerTile * kStreamMaxTokens, lane, total, x_sum);
    __syncwarp();  // every lane has its words in registers: the stage may be overwritten
    stream.CopyNext(lane);
    if (++stage == p.stages) stage = 0, parity ^= 1;
    if (++k_tile == k_tiles || u + 1 == end) {
      // Warps' runs are contiguous, so (warp, group) pairs met are at most warps + groups - 1, and
      // warp + group numbers them.
      StoreSlot<kBits, T, kGroup, kTiles>(p, (group0 + group) * kTiles, total, x_sum,
                                          slots + (warp + group) * slot_floats, lane);
      k_tile = 0, ++group;
    }
  }
  __syncthreads();

  // Sum over the warps, in their order; then over the blocks of the cluster, in theirs.
  const TokenShare share(warp, p.m);
  if (share.part >= share.parts && p.splits == 1) return;
  const int rows = groups * kTiles * kTileRows, row0 = group0 * kTiles * kTileRows;
  const int first = share.part * kLanes + lane, step = share.parts * kLanes;
  T* y = static_cast<T*>(p.y) + int64_t{share.token} * p.n + row0;
  const auto block_sum = [&](int row) {
    const int grp = row / (kTiles * kTileRows), in_group = row % (kTiles * kTileRows);
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kStreamWarps; ++w) {
      const bool met = max(w * units / kStreamWarps, grp * k_tiles) <
                       min((w + 1) * units / kStreamWarps, (grp + 1) * k_tiles);
      if (met) sum += slots[(w + grp) * slot_floats + share.token * SlotColumn(kTiles) + in_group];
    }
    return sum;
  };
#if __CUDA_ARCH__ >= 900
  if (p.splits > 1) {
    // Block r of the cluster finishes rows [r each, (r + 1) each): the others send it theirs.
    const int each = (rows + p.splits - 1) / p.splits;
    const float* inbox = reinterpret_cast<const float*>(smem + p.inbox);
    ClusterWait();  // all blocks run: their shared memory may be written
    if (share.part < share.parts) {
      for (int row = first; row < rows; row += step) {
        const int owner = row / each;
        ClusterStore(ClusterAddress(SharedAddress(inbox + (rank * p.m + share.token) * each + row -
                                                  owner * each),
                                    owner),
                     block_sum(row));
      }
    }
    ClusterArrive();
    ClusterWait();
    if (share.part >= share.parts) return;
    for (int row = first; row < min(each, min(rows - rank * each, p.n - row0 - rank * each));
         row += step) {
      float sum = 0;
      for (int r = 0; r < p.splits; ++r) sum += inbox[(r * p.m + share.token) * each + row];
      y[rank * each + row] = FromFloat<T>(sum);
    }
    return;
  }
#endif
#pragma unroll 1
  for (int row = first; row < min(rows, p.n - row0); row += step)
    y[row] = FromFloat<T>(block_sum(row));
}

// Instantiated once a width, in stream_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchStreamGemmBits(const StreamGemmParams& p, int group, Dtype dtype, int tiles,
                                 const cudaLaunchConfig_t& config);

template <int kBits, typename T, int kGroup>
cudaError_t LaunchStreamGemmTiles(const StreamGemmParams& p, int tiles,
                                  const cudaLaunchConfig_t& config) {
  const auto launch = [&](auto kernel) {
    const int bytes = static_cast<int>(config.dynamicSmemBytes);
    const cudaError_t set =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    return set != cudaSuccess ? set : cudaLaunchKernelEx(&config, kernel, p);
  };
  switch (tiles) {
    case 1:
      return launch(StreamGemmKernel<kBits, T, kGroup, 1>);
    case 2:
      return launch(StreamGemmKernel<kBits, T, kGroup, 2>);
    case 3:
      return launch(StreamGemmKernel<kBits, T, kGroup, 3>);
    case 4:
      return launch(StreamGemmKernel<kBits, T, kGroup, 4>);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits, typename T>
cudaError_t LaunchStreamGemmGroup(const StreamGemmParams& p, int group, int tiles,
                                  const cudaLaunchConfig_t& config) {
  switch (group) {
    case 0:
      return LaunchStreamGemmTiles<kBits, T, 0>(p, tiles, config);
#ifndef BABAI_CUDA_QUICK
    case 32:
      return LaunchStreamGemmTiles<kBits, T, 32>(p, tiles, config);
    case 64:
      return LaunchStreamGemmTiles<kBits, T, 64>(p, tiles, config);
#endif
    case 128:
      return LaunchStreamGemmTiles<kBits, T, 128>(p, tiles, config);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits>
cudaError_t LaunchStreamGemmBits(const StreamGemmParams& p, int group, Dtype dtype, int tiles,
                                 const cudaLaunchConfig_t& config) {
  return dtype == Dtype::kFp16
             ? LaunchStreamGemmGroup<kBits, __half>(p, group, tiles, config)
             : LaunchStreamGemmGroup<kBits, __nv_bfloat16>(p, group, tiles, config);
}

}  // namespace babai::cuda
