#include "kernels/cuda/prefill_rows.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide_attention.h"

namespace babai::cuda {
namespace {

constexpr int kKeys = 128;                                // of a tile
constexpr int kStages = 3;                                // tiles of keys, and of values
constexpr int kMultipliers = kPrefillRows / kRowsOfWarp;  // warps
constexpr int kCopiers = 128;                             // threads
constexpr int kThreads = kMultipliers * kWarp + kCopiers;
// Shared out: 40 + 2 x 232 <= 3 x 168.
constexpr int kCopierRegisters = 40, kMultiplierRegisters = 232;

// Shared memory: a tile is boxes of 64 features, a row of 128 bytes a key, swizzled.
constexpr int kBoxDims = 64, kBoxBytes = kKeys * kBoxDims * 2;
constexpr int kBarriers = 4 * kStages;  // of keys full, empty, of values full, empty
constexpr int kFound = 3;               // tiles whose rows' places are kept: see WideCopier
constexpr int kRing = 2048;             // its offset, behind barriers and places
static_assert(kBarriers * 8 + kFound * kKeys * static_cast<int>(sizeof(int32_t)) <= kRing);

template <int kDim>
constexpr int kTileBytes = kDim / kBoxDims * kBoxBytes;
template <int kDim>
constexpr int kSharedBytes = kRing + 2 * kStages * kTileBytes<kDim>;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Addresses in shared memory; tiles are counted from a block's first.
template <int kDim>
struct Ring {
  uint32_t base;

  __device__ uint32_t Keys(int t) const { return base + kRing + t % kStages * kTileBytes<kDim>; }
  __device__ uint32_t Values(int t) const { return Keys(t) + kStages * kTileBytes<kDim>; }
  __device__ uint32_t KeysFull(int t) const { return base + t % kStages * 8; }
  __device__ uint32_t KeysEmpty(int t) const { return KeysFull(t) + kStages * 8; }
  __device__ uint32_t ValuesFull(int t) const { return KeysFull(t) + 2 * kStages * 8; }
  __device__ uint32_t ValuesEmpty(int t) const { return KeysFull(t) + 3 * kStages * 8; }
  static __device__ uint32_t Parity(int t) { return t / kStages & 1; }
};

// The warpgroup that copies.
template <int kDim>
struct WideCopier {
  static constexpr int kPieces = kDim / 8;  // of 16 bytes, of a row

  const AttentionArgs& a;
  const Ring<kDim>& ring;
  int32_t* places;  // [kFound][kKeys]: pieces before a key's row in the cache, -1: none
  const int32_t* table;
  int kv_head, thread;

  // The block of this thread's key of the tile from key0 on; 0 if there is none.
  __device__ int32_t BlockOf(int key0, const PrefillKeys& keys) const {
    const int key = key0 + thread;
    return key >= keys.first && key < keys.end ? table[key / a.cache.block_size] : 0;
  }
  // Tells all threads where tile t's keys are. A third tile's places are found while a slow thread
  // may still copy the values of the first.
  __device__ void Find(int t, int key0, int32_t block, const PrefillKeys& keys) const {
    const int key = key0 + thread, size = a.cache.block_size;
    const int64_t slot = int64_t{block} * size + key % size;
    const bool there = key >= keys.first && key < keys.end;
    places[t % kFound * kKeys + thread] =
        there ? static_cast<int32_t>(a.cache.RowAt(slot, kv_head) / 8) : -1;
    asm volatile("bar.sync 1, %0;" ::"n"(kCopiers) : "memory");
  }
  __device__ void Copy(int t, const __half* from, uint32_t to, uint32_t full) const {
    constexpr int kRows = kKeys * kPieces / kCopiers, kNextRow = kCopiers / kPieces;
    static_assert(kNextRow % 8 == 0, "all of a thread's rows are swizzled alike");
    const int piece = thread % kPieces, row0 = thread / kPieces;
    const bool inside = piece < a.cache.stride() / 8;
    int32_t mine[kRows];  // read at once: copies are not moved across reads
#pragma unroll
    for (int i = 0; i < kRows; ++i) mine[i] = places[t % kFound * kKeys + i * kNextRow + row0];
    to += piece / 8 * kBoxBytes + row0 * 128 + ((piece % 8 ^ row0 % 8) << 4);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool valid = inside && mine[i] >= 0;
      const __half* source = from + (valid ? int64_t{mine[i] + piece} * 8 : 0);
      CopyAsync16OrZero(to + i * kNextRow * 128, source, valid);
    }
    CopyAsyncArrive(full);
  }
  // The queries are there: what fills the ring would hold them up.
  static __device__ void Meet() { asm volatile("bar.sync 4, %0;" ::"n"(kThreads) : "memory"); }
  // Values come a tile behind keys, as they are needed.
  __device__ void Run(int tile0, int count, const PrefillKeys& keys) const {
    int32_t block = BlockOf(tile0 * kKeys, keys);
#pragma unroll 1
    for (int t = 0; t <= count; ++t) {
      if (t < count) {
        const int key0 = (tile0 + t) * kKeys;
        Find(t, key0, block, keys);
        block = BlockOf(key0 + kKeys, keys);  // there when it is needed
        if (t == 1) Meet();
        if (t >= kStages) BarrierWait(ring.KeysEmpty(t), ring.Parity(t) ^ 1);
        Copy(t, a.cache.k, ring.Keys(t), ring.KeysFull(t));
      }
      if (t == 0) continue;
      if (t > kStages) BarrierWait(ring.ValuesEmpty(t - 1), ring.Parity(t - 1) ^ 1);
      Copy(t - 1, a.cache.v, ring.Values(t - 1), ring.ValuesFull(t - 1));
    }
    CopyAsyncWait<0>();
  }
};

// A multiplying warp and its 16 rows; products are those of its warpgroup.
template <typename T, int kDim>
struct WideRows : RowsSoftmax {
  const AttentionArgs& a;
  const Ring<kDim>& ring;
  const PrefillRows& rows;
  const PrefillKeys& keys;
  int head0, row0, lane;
  int position[2];
  uint32_t q[kDim / 16][4];
  float s[kKeys / 2], out[kDim / 2];
  uint32_t weights[kKeys / 16][4];

  __device__ WideRows(const AttentionArgs& args, const Ring<kDim>& r, const PrefillRows& pairs,
                      const PrefillKeys& seen, int first_head, int warp, int l)
      : a(args),
        ring(r),
        rows(pairs),
        keys(seen),
        head0(first_head),
        row0(warp * kRowsOfWarp),
        lane(l) {
    // Rows past the last see what it sees; nobody reads them.
    position[0] = rows.Position(min(row0 + lane / 4, rows.count - 1));
    position[1] = rows.Position(min(row0 + lane / 4 + 8, rows.count - 1));
  }
  template <typename Array>
  static __device__ auto& Fours(Array& v) {
    return reinterpret_cast<float (&)[sizeof(v) / 16][4]>(v);
  }

  __device__ void LoadQueries() {
    const int dim = a.cache.head_dim, col = lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row0 + lane / 4 + 8 * half;
      const bool there = r < rows.count;
      const T* from =
          there ? QueryAt<T>(a, rows.s.first_row + rows.Token(r), head0 + rows.Head(r)) : nullptr;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const int at = i * 8 + col;
        uint32_t pair = 0;
        if (there && at < dim) pair = *reinterpret_cast<const uint32_t*>(from + at);
        q[i / 2][i % 2 * 2 + half] = pair;
      }
    }
    // Only now, lest one load waits for another's conversion.
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        T two[2];
        __builtin_memcpy(two, &q[d][i], 4);
        if (!__is_same(T, __half)) q[d][i] = PackHalves(ToFloat(two[0]), ToFloat(two[1]));
      }
    }
  }
  // Tells those that copy.
  __device__ void QueriesAreThere() {
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[d][i] = Opaque(q[d][i]);
    }
    asm volatile("bar.arrive 4, %0;" ::"n"(kThreads) : "memory");
  }
  __device__ void StartScores(int t) {
    BarrierWait(ring.KeysFull(t), ring.Parity(t));
    ProxyFence();
    const uint64_t k = SwizzledOperand(ring.Keys(t));
    WarpgroupFence();
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      constexpr int kSteps = kBoxDims / 16;  // of a box
      const uint64_t b = k + d / kSteps * (kBoxBytes >> 4) + d % kSteps * (32 >> 4);
      if (d == 0) {
        WarpgroupMmaAnew(s, q[d], b);
      } else {
        WarpgroupMma<__half, kKeys>(s, q[d], b);
      }
    }
    WarpgroupCommit();
  }
  __device__ void StartSums(int t) {
    BarrierWait(ring.ValuesFull(t), ring.Parity(t));
    ProxyFence();
    const uint64_t v = TransposedOperand(ring.Values(t), kBoxBytes);
    WarpgroupFence();
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      WarpgroupMmaTransposed<kDim>(out, weights[n], v + n * (16 * 128 >> 4));
    }
    WarpgroupCommit();
  }
  __device__ void Release(uint32_t empty) const {
    __syncwarp();
    if (lane == 0) BarrierArrive(empty);
  }
  // Warpgroups take turns: one's softmax while the other's products run.
  static __device__ void AwaitTurn(bool first) {
    asm volatile("bar.sync %0, %1;" ::"r"(first ? 2 : 3), "n"(kMultipliers * kWarp) : "memory");
  }
  static __device__ void PassTurn(bool first) {
    asm volatile("bar.arrive %0, %1;" ::"r"(first ? 3 : 2), "n"(kMultipliers * kWarp) : "memory");
  }
  // The weights of tile t from its scores; keep: see Weigh().
  __device__ void Soften(int key0, float (&keep)[2]) {
    float factor = a.scale * kLog2E;
    if (a.softcap > 0) {
      factor = 1;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) s[i] = ScoreOf(s[i], a);
    }
    if (!keys.Whole(key0, kKeys, a.window)) Mask(Fours(s), a, key0, position, lane);
    this->Weigh(Fours(s), factor, keep);
  }
  __device__ void PackAllWeights() {
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) PackWeights(weights[n], Fours(s), 2 * n);
  }

  __device__ void Run(int tile0, int count) {
    float keep[2];
#pragma unroll
    for (float& v : out) v = 0;
    const bool first = row0 < kPrefillRows / 2;
    if (!first && count > 1) PassTurn(first);
    StartScores(0);
    WarpgroupWait<0>();
    PinRegisters(s);
    Release(ring.KeysEmpty(0));
    Soften(tile0 * kKeys, keep);
    PackAllWeights();
#pragma unroll 1
    for (int t = 0; t + 1 < count; ++t) {
      AwaitTurn(first);
      StartScores(t + 1);
      StartSums(t);
      if (first || t + 2 < count) PassTurn(first);
      WarpgroupWait<1>();
      PinRegisters(s);
      Release(ring.KeysEmpty(t + 1));
      Soften((tile0 + t + 1) * kKeys, keep);
      PinRegisters(s);
      // Here, for the compiler would have the softmax wait for the sums too if no branch were
      // between them.
      if (t + 2 < count) BarrierWait(ring.KeysFull(t + 2), ring.Parity(t + 2));
      WarpgroupWait<0>();
      PinRegisters(out);
      Release(ring.ValuesEmpty(t));
#pragma unroll
      for (int i = 0; i < kDim / 2; ++i) out[i] *= keep[i % 4 / 2];
      PackAllWeights();
    }
    StartSums(count - 1);
    WarpgroupWait<0>();
    PinRegisters(out);
    this->Finish();
  }
  __device__ void Store() const {
    const int dim = a.cache.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row0 + lane / 4 + 8 * half;
      if (r >= rows.count) continue;
      const float inverse = 1.0f / this->sum[half];
      T* to = static_cast<T*>(a.out) +
              (int64_t{rows.s.first_row + rows.Token(r)} * a.heads + head0 + rows.Head(r)) * dim;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const int at = i * 8 + lane % 4 * 2;
        if (at >= dim) continue;
        const T two[2] = {FromFloat<T>(out[4 * i + 2 * half] * inverse),
                          FromFloat<T>(out[4 * i + 2 * half + 1] * inverse)};
        uint32_t pair;
        __builtin_memcpy(&pair, two, 4);
        *reinterpret_cast<uint32_t*>(to + at) = pair;
      }
    }
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    WideAttentionKernel(AttentionArgs a, const PrefillTile* tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t smem[];
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  const Ring<kDim> ring{SharedAddress(smem)};
  if (threadIdx.x < kStages) {
    const int t = threadIdx.x;
    BarrierInit(ring.KeysFull(t), kCopiers), BarrierInit(ring.KeysEmpty(t), kMultipliers);
    BarrierInit(ring.ValuesFull(t), kCopiers), BarrierInit(ring.ValuesEmpty(t), kMultipliers);
  }
  BarrierInitFence();
  __syncthreads();
  StartStep();
  const int kv_head = blockIdx.y;
  const PrefillRows rows(a, PrefillTileOf(tiles));
  const PrefillKeys keys(a, rows);
  const int tile0 = keys.first / kKeys, count = (keys.end + kKeys - 1) / kKeys - tile0;
  if (warp >= kMultipliers) {
    GiveRegisters<kCopierRegisters>();
    const WideCopier<kDim> copier{a,
                                  ring,
                                  reinterpret_cast<int32_t*>(smem + kBarriers * 8),
                                  a.tables + rows.s.table,
                                  kv_head,
                                  static_cast<int>(threadIdx.x) - kMultipliers * kWarp};
    copier.Run(tile0, count, keys);
  } else {
    TakeRegisters<kMultiplierRegisters>();
    WideRows<T, kDim> own(a, ring, rows, keys, kv_head * rows.group, warp, lane);
    own.LoadQueries();
    if (count > 1) own.QueriesAreThere();
    own.Run(tile0, count);
    own.Store();
  }
#else
  asm volatile("trap;");  // built for older machines only
#endif
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArgs& args, const PrefillTile* tiles, int count,
                        const Queue& queue) {
  const dim3 grid(count, args.cache.kv_heads);
  if (args.cache.head_dim <= 64) {
    return Launch(WideAttentionKernel<T, 64>, grid, kThreads, kSharedBytes<64>, queue, args, tiles);
  }
  return Launch(WideAttentionKernel<T, 128>, grid, kThreads, kSharedBytes<128>, queue, args, tiles);
}

}  // namespace

bool WideAttentionTakes(const AttentionArgs& args) {
  constexpr int kWidest = 128, kHopper = 9;
  int device = 0, major = 0;
  return args.cache.head_dim <= kWidest && args.q.stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(args.q.data) % 4 == 0 &&
         cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == kHopper;
}

cudaError_t WideAttention(const AttentionArgs& args, const PrefillTile* tiles, int count,
                          const Queue& queue) {
  return args.dtype == Dtype::kFp16 ? LaunchTyped<__half>(args, tiles, count, queue)
                                    : LaunchTyped<__nv_bfloat16>(args, tiles, count, queue);
}

}  // namespace babai::cuda
