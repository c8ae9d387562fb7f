// The kernel of stream_gemm.h.
#pragma once

#include "kernels/cuda/gemm_ends.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

constexpr int kStreamThreads = kStreamWarps * kLanes;
constexpr int kXArrivals =
#if __CUDA_ARCH__ >= 900
    1;  // x by the copy engine, one arrival announcing the bytes
#else
    kLanes;  // by cp.async, an arrival a lane
#endif
constexpr int kXPadBytes = 16;  // a row stride of 16 mod 128 bytes: ldmatrix without conflicts
constexpr int kSlotColumn = kStripRows + 4;  // 4 mod 32 words: a warp's sums go to distinct banks

// Copies up to kBytes of the next records, `left` of which there are, by all lanes of a warp.
template <int kBytes, int kRecord>
__device__ __forceinline__ void CopyRecords(uint32_t to, const uint8_t* from, int left, int lane) {
  constexpr int kRound = kLanes * 16;
  const int bytes = kBytes == kRecord ? kBytes : min(kBytes, left * kRecord);
#pragma unroll
  for (int b = 0; b < kBytes; b += kRound) {
    const bool whole = kBytes == kRecord && b + kRound <= kBytes;
    if (whole || b + lane * 16 < bytes) CopyAsync16(to + b + lane * 16, from + b + lane * 16);
  }
}

// What the host works out once a launch: a division here costs every warp tens of instructions, in
// a kernel that has only thousands.
struct StreamGemmParams {
  const void* x;
  const uint8_t* weights;
  void* y;
  int m, n, k;
  int k_tiles;
  bool deep;              // rings of kDeepStages units, else of kShallowStages
  Shares strips;          // of a block
  uint32_t over_k_tiles;  // 2^32 / k_tiles, rounded up
  int64_t row_meta_offset, row_zeros_offset;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  GemmEnds ends;
  int ring, x_rows, slots;  // offsets in shared memory
};

// x in shared memory: zeros behind its last column now, the rest when the preceding kernel is done.
struct XBlock {
  uint8_t* rows;
  int stride, bytes, valid_bytes;  // of a row here; of its columns; of those that x has

  __device__ __forceinline__ XBlock(const StreamGemmParams& p, uint8_t* smem)
      : rows(smem + p.x_rows),
        stride(p.k_tiles * kTileCols * 2 + kXPadBytes),
        bytes(p.k_tiles * kTileCols * 2),
        valid_bytes(p.k * 2) {}

  __device__ __forceinline__ void ClearTail(int m) const {
    if (valid_bytes == bytes) return;
#pragma unroll 1
    for (int token = 0; token < m; ++token) {
#pragma unroll 1
      for (int b = valid_bytes + threadIdx.x * 16; b < bytes; b += kStreamThreads * 16) {
        *reinterpret_cast<uint4*>(rows + token * stride + b) = make_uint4(0, 0, 0, 0);
      }
    }
  }
  // For the first warp.
  __device__ __forceinline__ void Copy(const StreamGemmParams& p, uint32_t bar) const {
    const uint8_t* x = static_cast<const uint8_t*>(p.x);
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
      for (int b = threadIdx.x * 16; b < valid_bytes; b += kLanes * 16) {
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

// Puts a warp's sums of one strip into its slot, [token][row], in units of y, and clears them.
template <int kBits, typename T, int kGroup, bool kAsymmetric>
__device__ __forceinline__ void StoreSlot(const StreamGemmParams& p, int strip,
                                          float (&total)[kStripTiles][1][4], float (&x)[1][4],
                                          float* slot, int lane) {
  using Unit = TotalUnit<kBits, T>;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kStripTiles; ++i) {
    float (&sums)[4] = total[i][0];
    if constexpr (kGroup == 0) {
      const int64_t row_tile = strip * kStripTiles + i;
      ScaleRows<kBits, T, Zeros::kSumHere>(
          total[i], x,
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
  if (kGroup == 0) Clear(x);
}

// Two blocks' registers fit an SM, so that the next kernel's can be there beside this one's.
template <int kBits, typename T, int kGroup, bool kAsymmetric>
__global__ void __launch_bounds__(kStreamThreads, 2)
    StreamGemmKernel(const __grid_constant__ StreamGemmParams p) {
  SHARED_MEMORY(smem);
  // Broadcast, so that the compiler knows a warp's own numbers to be the same in all its lanes.
  const int warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  const int strip0 = p.strips.Begin(blockIdx.x), strips = p.strips.Begin(blockIdx.x + 1) - strip0;
  const int records = strips * p.k_tiles;
  const int begin = warp * records / kStreamWarps, end = (warp + 1) * records / kStreamWarps;

  // The ring. A block's records are one range of bytes, and a warp's a part of it.
  constexpr int kRecord = kRecordBytes<kBits, kGroup, kAsymmetric>, kUnit = kUnitRecords[kBits];
  constexpr int kStage = kUnit * kRecord, kDeep = kDeepStages[kBits];
  const int stages = p.deep ? kDeep : kShallowStages;
  const uint8_t* const ring = smem + p.ring + warp * stages * kStage;
  const uint8_t* source = p.weights + (int64_t{strip0} * p.k_tiles + begin) * kRecord;
  int to_copy = end - begin, copy_stage = 0;  // records, and where the next unit goes
  const auto copy_next = [&] {
    const uint32_t to = SharedAddress(ring) + copy_stage * kStage;
    if (to_copy > 0) CopyRecords<kStage, kRecord>(to, source, to_copy, lane);
    CopyAsyncCommit();
    source += kStage, to_copy -= kUnit;
    if (++copy_stage == stages) copy_stage = 0;
  };
  const XBlock x(p, smem);
  x.ClearTail(p.m);
  const uint32_t x_bar = SharedAddress(smem);
  if (threadIdx.x == 0) BarrierInit(x_bar, kXArrivals);
  BarrierInitFence();
  __syncthreads();
  // At once: the next kernel's first copies keep memory busy while this one waits for x and while
  // it sums up.
  LetNextKernelStart();
  // Fill the ring: weights are constant, so this need not wait for the preceding kernel. A unit at
  // a time: all at once would queue in front of the preceding kernel's last stores and of x, for
  // which everything waits. The first warp has to be there when x is, and does not wait for its
  // own.
#pragma unroll 1
  for (int i = 0; i < stages - 1; ++i) {
    if (i > 0 && warp != 0) CopyAsyncWait<0>();
    copy_next();
  }
  float* const slots = reinterpret_cast<float*>(smem + p.slots);
  // At the end warp w serves token w % m, a row a lane. What is added to is read meanwhile.
  const int part = warp / p.m, parts = kStreamWarps / p.m, token = warp - part * p.m;
  const int row0 = strip0 * kStripRows, rows = min(strips * kStripRows, p.n - row0);
  const int first = part < parts ? part * kLanes + lane : rows, step = parts * kLanes;
  const bool adds = p.ends.output == GemmOutput::kAdd;
  float* const sum_to = static_cast<float*>(p.y) + int64_t{token} * p.n + row0;
  float before = 0;
  const auto read_before = [&] {
    if (adds && first < rows) before = sum_to[first];
  };
  if (p.ends.norm != nullptr) {
    const NormedX normed(p);
    WaitForPrecedingKernel();
    read_before();
    normed.Put<T>(p, x, slots);
  } else {
    if (warp == 0) {
      WaitForPrecedingKernel();
      x.Copy(p, x_bar);
    }
    BarrierWait(x_bar, 0);
    read_before();
  }

  // Work through the records. Sums stay in registers while the strip stays the same.
  const int slot_floats = kSlotColumn * p.m;
  const uint32_t x_lane = SharedAddress(x.rows) + min(lane % 8, p.m - 1) * x.stride + lane / 8 * 16;
  float total[kStripTiles][1][4] = {}, x_sums[1][1][4] = {};
  int strip = p.k_tiles == 1 ? begin : __umulhi(begin, p.over_k_tiles);
  int tile = begin - strip * p.k_tiles, stage = 0;
#pragma unroll 1
  for (int at = begin; at < end;) {
    if (p.deep) {
      CopyAsyncWait<kDeep - 2>();
    } else {
      CopyAsyncWait<kShallowStages - 2>();
    }
    // Every lane's part of this unit is there, and of the one before every lane has its words in
    // registers: its stage may be overwritten.
    __syncwarp();
    copy_next();
    const uint8_t* record = ring + stage * kStage;
    if (++stage == stages) stage = 0;
    const int behind = min(at + kUnit, end);
#pragma unroll 1
    for (; at < behind; ++at, record += kRecord) {
      const uint32_t x_tile = x_lane + tile * kTileCols * 2;
      const auto load_x = [&](int half, XHalf(&b)[1]) {
        LoadMatrix4(b[0][0], x_tile + half * kHalfCols * 2);
        LoadMatrix4(b[0][1], x_tile + half * kHalfCols * 2 + 64);
      };
      AddRecord<kBits, T, kGroup, Zeros::kSumHere>(record, kRecord / kStripTiles, load_x, x_sums,
                                                   kAsymmetric, p.exponent, lane, total);
      const bool strip_ends = ++tile == p.k_tiles;
      if (strip_ends || at + 1 == end) {
        // Warps' runs are contiguous, so (warp, strip) pairs met are at most warps + strips - 1,
        // and warp + strip numbers them.
        StoreSlot<kBits, T, kGroup, kAsymmetric>(p, strip0 + strip, total, x_sums[0],
                                                 slots + (warp + strip) * slot_floats, lane);
        tile = 0, ++strip;
      }
    }
  }
  __syncthreads();

  // Sum over the warps, in their order.
  const auto block_sum = [&](int row) {
    const int strip = row / kStripRows;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kStreamWarps; ++w) {
      const bool met = max(w * records / kStreamWarps, strip * p.k_tiles) <
                       min((w + 1) * records / kStreamWarps, (strip + 1) * p.k_tiles);
      if (met) sum += slots[(w + strip) * slot_floats + token * kSlotColumn + row % kStripRows];
    }
    return sum;
  };
  if (p.ends.output == GemmOutput::kGate) {
    T* y = static_cast<T*>(p.y) + int64_t{token} * (p.n / 2) + row0 / 2;
#pragma unroll 1
    for (int i = first; i < rows / 2; i += step) {
      const int gate = i / 8 * kTileRows + i % 8;
      y[i] = FromFloat<T>(Gated(p.ends.gate, block_sum(gate), block_sum(gate + 8)));
    }
    return;
  }
  T* y = static_cast<T*>(p.y) + int64_t{token} * p.n + row0;
#pragma unroll 1
  for (int row = first; row < rows; row += step) {
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
                                 const LaunchConfig& config) {
  return ForFormat(dtype, shape.group, [&]<typename T, int kGroup>() {
    return shape.asymmetric ? LaunchLarge(StreamGemmKernel<kBits, T, kGroup, true>, config, p)
                            : LaunchLarge(StreamGemmKernel<kBits, T, kGroup, false>, config, p);
  });
}

}  // namespace babai::cuda
