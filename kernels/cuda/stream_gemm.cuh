// The kernel of stream_gemm.h.
#pragma once

#include "kernels/cuda/gemm_ends.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

constexpr int kStreamThreads = kStreamWarps * kLanes;
constexpr bool kBulk =
#if __CUDA_ARCH__ >= 900
    true;  // copies by the copy engine, one arrival announcing the bytes
#else
    false;  // copies by cp.async, an arrival a lane
#endif
constexpr int kXPadBytes = 16;  // a row stride of 16 mod 128 bytes: ldmatrix without conflicts
constexpr int kSlotColumn = kStripRows + 4;  // 4 mod 32 words: a warp's sums go to distinct banks

// `total` things shared out evenly: the first `extra` shares have one more than the rest.
struct Shares {
  int each, extra;

  __device__ __forceinline__ int Begin(int i) const { return i * each + min(i, extra); }
};

// What the host works out once a launch: a division here costs every warp tens of instructions, in
// a kernel that has only thousands.
struct StreamGemmParams {
  const void* x;
  const uint8_t* weights;
  void* y;
  int m, n, k;
  int k_tiles;     // of the matrix
  int unit_tiles;  // k tiles a copy brings: a unit, what a warp waits for and works through
  int split_shift, stages;
  Shares strips;             // of a cluster
  Shares k_units;            // of a block of the cluster; units along k
  uint32_t over_k_units[2];  // 2^32 over (k_units.each, k_units.each + 1), rounded up
  int record_bytes;
  int64_t strip_bytes, row_meta_offset, row_zeros_offset;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  GemmEnds ends;
  int ring, x_rows, slots, inbox;  // offsets in shared memory
};

// This block's columns of x: zeros behind the last one now, the rest when the preceding kernel is
// done. Every warp writes the zeros, so that none has to wait for another's.
struct XBlock {
  uint8_t* rows;
  int stride, bytes, valid_bytes;  // of a row here; of its columns; of those that x has

  __device__ __forceinline__ XBlock(const StreamGemmParams& p, uint8_t* smem, int col0, int cols)
      : rows(smem + p.x_rows),
        stride(cols * 2 + kXPadBytes),
        bytes(cols * 2),
        valid_bytes(min(cols, p.k - col0) * 2) {}

  __device__ __forceinline__ void ClearTail(int m, int lane) const {
    if (valid_bytes == bytes) return;
#pragma unroll 1
    for (int token = 0; token < m; ++token) {
#pragma unroll 1
      for (int b = valid_bytes + lane * 16; b < bytes; b += kLanes * 16) {
        *reinterpret_cast<uint4*>(rows + token * stride + b) = make_uint4(0, 0, 0, 0);
      }
    }
  }
  __device__ __forceinline__ void Copy(const StreamGemmParams& p, int col0, uint32_t bar) const {
    const uint8_t* x = static_cast<const uint8_t*>(p.x) + col0 * 2;
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      BarrierArriveExpect(bar, p.m * valid_bytes);
#pragma unroll 1
      for (int i = 0; i < p.m; ++i) {
        // Every block starts elsewhere: all reading the same lines at once would queue in L2.
        const int token = (blockIdx.x + i) % p.m;
        BulkCopy(SharedAddress(rows + token * stride), x + int64_t{token} * p.k * 2, valid_bytes,
                 bar);
      }
    }
#else
    for (int token = 0; token < p.m; ++token) {
      for (int b = threadIdx.x * 16; b < valid_bytes; b += kStreamThreads * 16) {
        CopyAsync16(SharedAddress(rows + token * stride) + b, x + int64_t{token} * p.k * 2 + b);
      }
    }
    CopyAsyncArrive(bar);
#endif
  }
};

// x where it is to be normed first: rows of the residual stream, a row to as many warps as there
// are for a token. They are read once and wait in registers for their sum of squares.
struct NormedX {
  float4 weights[kNormQuads];
  int token, thread, threads;  // this thread's row, and its place among that row's

  __device__ __forceinline__ explicit NormedX(const StreamGemmParams& p) {
    threads = kStreamWarps / p.m * kLanes;
    token = threadIdx.x / threads, thread = threadIdx.x - token * threads;
    ForEach(p, [&](int q, int col) {
      weights[q] = __ldg(reinterpret_cast<const float4*>(p.ends.norm + col));
    });
  }
  template <typename Fn>
  __device__ __forceinline__ void ForEach(const StreamGemmParams& p, const Fn& fn) const {
#pragma unroll
    for (int q = 0; q < kNormQuads; ++q) {
      const int col = (q * threads + thread) * 4;
      if (col < p.k && token < p.m) fn(q, col);
    }
  }
  // `scratch`: a float a warp. Ends with a barrier.
  template <typename T>
  __device__ __forceinline__ void Put(const StreamGemmParams& p, const XBlock& to,
                                      float* scratch) const {
    float4 v[kNormQuads];
    const float* row = static_cast<const float*>(p.x) + int64_t{token} * p.k;
    ForEach(p, [&](int q, int col) { v[q] = *reinterpret_cast<const float4*>(row + col); });
    float squares = 0;
    ForEach(p, [&](int q, int) {
      squares += v[q].x * v[q].x + v[q].y * v[q].y + v[q].z * v[q].z + v[q].w * v[q].w;
    });
    squares = WarpSum(squares);
    if (threadIdx.x % kLanes == 0) scratch[threadIdx.x / kLanes] = squares;
    __syncthreads();
    const int warps = threads / kLanes, first = min(token * warps, kStreamWarps - warps);
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += scratch[first + w];
    const float inverse = rsqrtf(sum / static_cast<float>(p.k) + p.ends.eps);
    ForEach(p, [&](int q, int col) {
      T* at = reinterpret_cast<T*>(to.rows + token * to.stride) + col;
      at[0] = FromFloat<T>(v[q].x * inverse * weights[q].x);
      at[1] = FromFloat<T>(v[q].y * inverse * weights[q].y);
      at[2] = FromFloat<T>(v[q].z * inverse * weights[q].z);
      at[3] = FromFloat<T>(v[q].w * inverse * weights[q].w);
    });
    __syncthreads();
  }
};

// Where a warp stands in its run of units; one instance for copying, one `stages` behind for
// working.
struct Cursor {
  int unit, strip, tile, stage;  // tile: the unit's first k tile, within the block's share of k
  uint32_t parity;

  __device__ __forceinline__ void Next(int unit_tiles, int k_tiles, int stages) {
    ++unit, tile += unit_tiles;
    if (tile >= k_tiles) tile = 0, ++strip;
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Puts a warp's sums of one strip into its slot, [token][row], in units of y, and clears them.
template <int kBits, typename T, int kGroup, bool kAsymmetric>
__device__ __forceinline__ void StoreSlot(const StreamGemmParams& p, int strip,
                                          float (&run)[kStripTiles][1][4], float (&x)[1][4],
                                          float (&total)[kStripTiles][1][4], float* slot,
                                          int lane) {
  using Unit = TotalUnit<kBits, T>;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kStripTiles; ++i) {
    float(&sums)[4] = total[i][0];
    if constexpr (kGroup == 0) {
      const int64_t row_tile = strip * kStripTiles + i;
      AddScaled<kBits, T>(total[i], run[i], x,
                          {p.weights + p.row_meta_offset + row_tile * kTileRows * 2,
                           p.weights + p.row_zeros_offset + row_tile * kTileRows},
                          kAsymmetric, lane);
    }
    float* at = slot + 2 * t * kSlotColumn + i * kTileRows + g;
    if (2 * t < p.m) at[0] = sums[0] * Unit::kRow, at[8] = sums[2] * Unit::kRow8;
    if (2 * t + 1 < p.m)
      at[kSlotColumn] = sums[1] * Unit::kRow, at[kSlotColumn + 8] = sums[3] * Unit::kRow8;
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = 0;
  }
  if (kGroup == 0) Clear(run[0]), Clear(run[1]), Clear(x);
}

// Two blocks' registers fit an SM, so that the next kernel's can be there beside this one's.
template <int kBits, typename T, int kGroup, bool kAsymmetric>
__global__ void __launch_bounds__(kStreamThreads, 2)
    StreamGemmKernel(const __grid_constant__ StreamGemmParams p) {
  extern __shared__ __align__(128) uint8_t smem[];
  // Broadcast, so that the compiler knows a warp's own numbers to be the same in all its lanes.
  const int warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  const int cluster = blockIdx.x >> p.split_shift, rank = blockIdx.x - (cluster << p.split_shift);
  const int first_unit = p.k_units.Begin(rank), k_units = p.k_units.Begin(rank + 1) - first_unit;
  const int k_tile0 = first_unit * p.unit_tiles;
  const int k_tiles = min(k_units * p.unit_tiles, p.k_tiles - k_tile0);
  const int strip0 = p.strips.Begin(cluster), strips = p.strips.Begin(cluster + 1) - strip0;
  const int units = strips * k_units;
  const int begin = warp * units / kStreamWarps, end = (warp + 1) * units / kStreamWarps;
  const uint32_t over_k_units = p.over_k_units[k_units - p.k_units.each];
  const int begin_strip = k_units > 1 ? __umulhi(begin, over_k_units) : begin;

  const int stage_bytes = p.unit_tiles * p.record_bytes;
  const uint32_t x_bar = SharedAddress(smem), bars = x_bar + 8 + warp * p.stages * 8;
  const int ring = p.ring + warp * p.stages * stage_bytes;
  Cursor copy{begin, begin_strip, (begin - begin_strip * k_units) * p.unit_tiles, 0, 0};
  Cursor work = copy;
  const auto copy_next = [&] {
    const int bytes = min(p.unit_tiles, k_tiles - copy.tile) * p.record_bytes;
    const uint8_t* source = p.weights + (strip0 + copy.strip) * p.strip_bytes +
                            int64_t{k_tile0 + copy.tile} * p.record_bytes;
    const uint32_t to = SharedAddress(smem) + ring + copy.stage * stage_bytes;
    const uint32_t bar = bars + copy.stage * 8;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      BarrierArriveExpect(bar, bytes);
      BulkCopy(to, source, bytes, bar);
    }
#else
    for (int b = lane * 16; b < bytes; b += kLanes * 16) CopyAsync16(to + b, source + b);
    CopyAsyncArrive(bar);
#endif
    copy.Next(p.unit_tiles, k_tiles, p.stages);
  };

  // Fill the ring: weights are constant, so this need not wait for the preceding kernel.
  if (threadIdx.x == 0) BarrierInit(x_bar, kBulk ? 1 : kStreamThreads);
  for (int i = lane; i < p.stages; i += kLanes) BarrierInit(bars + i * 8, kBulk ? 1 : kLanes);
  BarrierInitFence();
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < p.stages && copy.unit < end; ++i) copy_next();
  // At once: the next kernel's first copies keep memory busy while this one waits for x and while
  // it sums up. That makes x itself arrive 1 us later, and is still better (measured).
  LetNextKernelStart();
  const XBlock x(p, smem, k_tile0 * kTileCols, k_tiles * kTileCols);
  x.ClearTail(p.m, lane);
  float* const slots = reinterpret_cast<float*>(smem + p.slots);
  // At the end warp w serves token w % m, a row a lane. What is added to is read meanwhile.
  const int part = warp / p.m, parts = kStreamWarps / p.m, token = warp - part * p.m;
  const int rows = strips * kStripRows, row0 = strip0 * kStripRows;
  const int first = part < parts ? part * kLanes + lane : rows, step = parts * kLanes;
  const bool adds = p.ends.output == GemmOutput::kAdd;
  float* const sum_to = static_cast<float*>(p.y) + int64_t{token} * p.n + row0;
  float before = 0;
  const auto read_before = [&] {
    if (adds && first < min(rows, p.n - row0)) before = sum_to[first];
  };
  if (p.ends.norm != nullptr) {
    const NormedX normed(p);
    WaitForPrecedingKernel();
    read_before();
    normed.Put<T>(p, x, slots);
  } else {
    __syncthreads();  // x_bar is ready
    WaitForPrecedingKernel();
    x.Copy(p, k_tile0 * kTileCols, x_bar);
    read_before();
  }
#if __CUDA_ARCH__ >= 900
  if (p.split_shift > 0) ClusterArrive();  // says that this block runs: see ClusterWait() below
#endif

  // Work through the units. Sums stay in registers while the strip stays the same.
  const int slot_floats = kSlotColumn * p.m;
  const uint32_t x_lane = SharedAddress(x.rows) + min(lane % 8, p.m - 1) * x.stride + lane / 8 * 16;
  float run[kStripTiles][1][4] = {}, total[kStripTiles][1][4] = {}, x_sums[1][4] = {};
  if (p.ends.norm == nullptr) BarrierWait(x_bar, 0);
#pragma unroll 1
  while (work.unit < end) {
    BarrierWait(bars + work.stage * 8, work.parity);
    const int tiles = min(p.unit_tiles, k_tiles - work.tile);
    const uint8_t* unit = smem + ring + work.stage * stage_bytes;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const uint32_t x_tile = x_lane + (work.tile + i) * kTileCols * 2;
      const auto load_x = [&](int half, int, uint32_t(&b)[2][4]) {
        LoadMatrix4(b[0], x_tile + half * kHalfCols * 2);
        LoadMatrix4(b[1], x_tile + half * kHalfCols * 2 + 64);
      };
      const uint8_t* record = unit + i * p.record_bytes;
      const auto tile_at = [&](int tile) { return record + tile * (p.record_bytes / kStripTiles); };
      AddTiles<kBits, T, kGroup>(tile_at, load_x, kAsymmetric, p.exponent, lane, run, x_sums,
                                 total);
    }
    __syncwarp();  // every lane has its words in registers: the stage may be overwritten
    if (copy.unit < end) copy_next();
    const int strip = work.strip;
    work.Next(p.unit_tiles, k_tiles, p.stages);
    if (work.strip != strip || work.unit == end) {
      // Warps' runs are contiguous, so (warp, strip) pairs met are at most warps + strips - 1, and
      // warp + strip numbers them.
      StoreSlot<kBits, T, kGroup, kAsymmetric>(p, strip0 + strip, run, x_sums, total,
                                               slots + (warp + strip) * slot_floats, lane);
    }
  }
  __syncthreads();

  // Sum over the warps, in their order; then over the blocks of the cluster, in theirs.
  T* y = static_cast<T*>(p.y) + int64_t{token} * p.n + row0;
  const auto block_sum = [&](int row) {
    const int strip = row / kStripRows;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kStreamWarps; ++w) {
      const bool met = max(w * units / kStreamWarps, strip * k_units) <
                       min((w + 1) * units / kStreamWarps, (strip + 1) * k_units);
      if (met) sum += slots[(w + strip) * slot_floats + token * kSlotColumn + row % kStripRows];
    }
    return sum;
  };
#if __CUDA_ARCH__ >= 900
  if (p.split_shift > 0) {
    // Block r of the cluster finishes rows [r each, (r + 1) each): the others send it theirs.
    const int splits = 1 << p.split_shift, each = (rows + splits - 1) >> p.split_shift;
    const float* inbox = reinterpret_cast<const float*>(smem + p.inbox);
    ClusterWait();  // all blocks run: their shared memory may be written
#pragma unroll 1
    for (int row = first; row < rows; row += step) {
      const int owner = row / each, at = (rank * p.m + token) * each + row - owner * each;
      ClusterStore(ClusterAddress(SharedAddress(inbox + at), owner), block_sum(row));
    }
    ClusterArrive();
    ClusterWait();
    const int mine = min(each, min(rows, p.n - row0) - rank * each);
#pragma unroll 1
    for (int row = first; row < mine; row += step) {
      float sum = 0;
#pragma unroll 1
      for (int r = 0; r < splits; ++r) sum += inbox[(r * p.m + token) * each + row];
      y[rank * each + row] = FromFloat<T>(sum);
    }
    return;
  }
#endif
  const int valid = min(rows, p.n - row0);
  if (p.ends.output == GemmOutput::kGate) {
    y = static_cast<T*>(p.y) + int64_t{token} * (p.n / 2) + row0 / 2;
#pragma unroll 1
    for (int i = first; i < valid / 2; i += step) {
      const int gate = i / 8 * kTileRows + i % 8;
      y[i] = FromFloat<T>(Gated(p.ends.gate, block_sum(gate), block_sum(gate + 8)));
    }
    return;
  }
#pragma unroll 1
  for (int row = first; row < valid; row += step) {
    if (adds) {
      sum_to[row] = block_sum(row) + (row == first ? before : sum_to[row]);
    } else {
      y[row] = FromFloat<T>(block_sum(row));
    }
  }
}

// Instantiated once a width, in stream_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchStreamGemmBits(const StreamGemmParams& p, const PackedShape& shape, Dtype dtype,
                                 const cudaLaunchConfig_t& config);

template <int kBits, typename T, int kGroup, bool kAsymmetric>
cudaError_t LaunchStreamGemmKernel(const StreamGemmParams& p, const cudaLaunchConfig_t& config) {
  const auto kernel = StreamGemmKernel<kBits, T, kGroup, kAsymmetric>;
  const int bytes = static_cast<int>(config.dynamicSmemBytes);
  const cudaError_t set =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return set != cudaSuccess ? set : cudaLaunchKernelEx(&config, kernel, p);
}

template <int kBits, typename T, bool kAsymmetric>
cudaError_t LaunchStreamGemmGroup(const StreamGemmParams& p, int group,
                                  const cudaLaunchConfig_t& config) {
  switch (group) {
    case 0:
      return LaunchStreamGemmKernel<kBits, T, 0, kAsymmetric>(p, config);
    case 32:
      return LaunchStreamGemmKernel<kBits, T, 32, kAsymmetric>(p, config);
    case 64:
      return LaunchStreamGemmKernel<kBits, T, 64, kAsymmetric>(p, config);
    case 128:
      return LaunchStreamGemmKernel<kBits, T, 128, kAsymmetric>(p, config);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits>
cudaError_t LaunchStreamGemmBits(const StreamGemmParams& p, const PackedShape& shape, Dtype dtype,
                                 const cudaLaunchConfig_t& config) {
  const bool half = dtype == Dtype::kFp16;
  if (shape.asymmetric) {
    return half ? LaunchStreamGemmGroup<kBits, __half, true>(p, shape.group, config)
                : LaunchStreamGemmGroup<kBits, __nv_bfloat16, true>(p, shape.group, config);
  }
  return half ? LaunchStreamGemmGroup<kBits, __half, false>(p, shape.group, config)
              : LaunchStreamGemmGroup<kBits, __nv_bfloat16, false>(p, shape.group, config);
}

}  // namespace babai::cuda
