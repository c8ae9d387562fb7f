#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/finish_head.cuh"

namespace babai::cuda {
namespace {

constexpr int kWarps = 4;
// Keys and values come through kSlots places in turn, a stage's keys, its values, the next one's
// keys: two for all of a block where that is no more than kDecodeKeys, which takes the fewest
// steps; else for half as many: four, or three, with which four blocks find room on an SM instead
// of three.
constexpr int kWhole = 2, kTightRing = 3, kRing = 4;
constexpr int kRingBlocks = 3;  // of kRing's that an SM has room for
template <int kSlots>
constexpr int kStageKeys = kSlots == kWhole ? kDecodeKeys : kDecodeKeys / 2;
template <int kSlots>
constexpr int kWarpKeys = kStageKeys<kSlots> / kWarps;
constexpr int kThreads = kWarps * kWarp;

// What softmax needs to know of a part: its largest score and the sum of its weights.
struct Seen {
  float top, sum;
};

// Where the blocks of a sequence's head leave their parts.
struct Workspace {
  float* outs;         // [sequences, heads, splits, head_dim]
  Seen* seen;          // [sequences, heads, splits]
  unsigned* arrivals;  // [sequences, kv head tiles]
};

__host__ __device__ int HeadTiles(int heads, int kv_heads) {
  return (heads / kv_heads + kRowsOfWarp - 1) / kRowsOfWarp;
}

// The keys of a sequence and how its blocks share them.
struct Share {
  int first, end;   // keys seen
  int begin, stop;  // of this block, from a multiple of kDecodeKeys on
  int splits;       // blocks with a share

  __device__ Share(const AttentionArgs& a, const AttentionSequence& s, int split, int most_splits) {
    end = s.start + 1;
    first = a.window > 0 ? max(0, end - a.window) : 0;
    const int tile0 = first / kDecodeKeys, tiles = (end - 1) / kDecodeKeys + 1 - tile0;
    const int each = (tiles + most_splits - 1) / most_splits;
    splits = (tiles + each - 1) / each;
    begin = (tile0 + split * each) * kDecodeKeys;
    stop = min(end, begin + each * kDecodeKeys);
  }
};

// Where in k and v a key's row is.
__device__ __forceinline__ int64_t RowOfKey(const KvCache& cache, const int32_t* table, int key,
                                            int kv_head) {
  const int64_t block = table[key / cache.block_size];
  return cache.RowAt(block * cache.block_size + key % cache.block_size, kv_head);
}

// Where a lane's key of a stage is, in pieces of 16 bytes of k and v; kNoKey: it has none.
constexpr uint32_t kNoKey = 0xffffffff;
constexpr int kPieceHalves = 8;

// A warp's keys of a stage, or their values, to its rows of shared memory; zeros where there is
// none.
template <int kDim, int kWarpKeys>
__device__ __forceinline__ void CopyRows(const KvCache& cache, const __half* values,
                                         uint32_t piece_of_key, uint32_t to, int lane) {
  constexpr int kPieces = kDim / kPieceHalves, kRounds = kWarpKeys * kPieces / kWarp;
  const int pieces = cache.stride() / kPieceHalves;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int key = (i * kWarp + lane) / kPieces, piece = (i * kWarp + lane) % kPieces;
    const uint32_t from = __shfl_sync(kAllLanes, piece_of_key, key);
    const bool valid = from != kNoKey && piece < pieces;
    CopyAsync16OrZero(to + key * kRowHalves<kDim> * 2 + piece * 16,
                      values + (valid ? int64_t{from} + piece : 0) * kPieceHalves, valid);
  }
}

template <int kDim, int kSlots>
struct DecodeShared {
  __half q[kRowsOfWarp][kRowHalves<kDim>];
  __half slots[kSlots][kStageKeys<kSlots>][kRowHalves<kDim>];
};
constexpr int kReservedBytes = 1024;  // of each block, by the system
static_assert(sizeof(DecodeShared<128, kWhole>) + kReservedBytes <= kDecodeBlockBytes &&
              sizeof(DecodeShared<128, kRing>) + kReservedBytes <= kDecodeBlockBytes);
// What the warps found, in the place of the keys.
template <int kDim>
struct DecodeFound {
  float out[kWarps][kRowsOfWarp][kDim];
  Seen seen[kRowsOfWarp][kWarps];
};

template <int kDim, int kKeys>
__device__ void StoreFound(const RowsState<kDim, kKeys>& state, DecodeFound<kDim>& found, int rows,
                           int warp, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = g + 8 * r;
    if (row >= rows) continue;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<float2*>(&found.out[warp][row][d * 8 + 2 * t]) =
          make_float2(state.out[d][2 * r], state.out[d][2 * r + 1]);
    }
    if (t == 0) found.seen[row][warp] = {state.top[r], state.sum[r]};
  }
}

// Parts of one row as one, added in their order: four neighbouring features of it.
struct Merged {
  Seen seen{kMinusInfinity, 0};
  float4 sum = make_float4(0, 0, 0, 0);

  __device__ __forceinline__ void Add(const Seen& part, const float4& v) {
    if (part.top == kMinusInfinity) return;  // it saw nothing
    const float top = fmaxf(seen.top, part.top);
    const float keep = exp2f(seen.top - top), factor = exp2f(part.top - top);
    seen = {top, seen.sum * keep + part.sum * factor};
    sum.x = sum.x * keep + v.x * factor, sum.y = sum.y * keep + v.y * factor;
    sum.z = sum.z * keep + v.z * factor, sum.w = sum.w * keep + v.w * factor;
  }
  template <typename T>
  __device__ __forceinline__ void Store(T* to) const {
    const float factor = 1 / seen.sum;
    to[0] = FromFloat<T>(sum.x * factor), to[1] = FromFloat<T>(sum.y * factor);
    to[2] = FromFloat<T>(sum.z * factor), to[3] = FromFloat<T>(sum.w * factor);
  }
};

// A part that another block left: its loads are under way while others are added.
struct LeftPart {
  Seen seen;
  float4 sum;

  __device__ __forceinline__ void Load(const Seen* from_seen, const float* from) {
    const float2 s = __ldcg(reinterpret_cast<const float2*>(from_seen));
    seen = {s.x, s.y};
    sum = __ldcg(reinterpret_cast<const float4*>(from));
  }
};

// The new token's q, k and v as FinishQkv() would leave them: q's rows in shared memory; k and v,
// in the block whose share they are, there and in the cache.
template <typename T, int kDim>
struct FreshRows {
  const FinishQkvArgs& f;
  const AttentionSequence& s;
  int kv_head, head0, rows;  // rows of q
  bool owns_key;
  int64_t cache_row;      // of the new key, if owned
  __half *k_row, *v_row;  // in shared memory, or null: not among the first copies

  // Item 0 is k, item 1 v, then q's rows.
  __device__ __forceinline__ const T* From(int item) const {
    const int64_t t = s.first_row;
    const int dim = f.cache.head_dim;
    if (item == 0) return static_cast<const T*>(f.k.data) + t * f.k.stride + kv_head * dim;
    if (item == 1) return static_cast<const T*>(f.v.data) + t * f.v.stride + kv_head * dim;
    return static_cast<const T*>(f.q) + t * f.q_stride + (head0 + item - 2) * dim;
  }
  __device__ __forceinline__ bool Wanted(int item) const {
    return item < 2 ? owns_key : item < 2 + rows;
  }
  __device__ __forceinline__ void Finish(int item, Head<kDim>& head, const HeadAngles<kDim>& angles,
                                         __half* q_row) const {
    const int dim = f.cache.head_dim;
    const float* biases = item == 0 ? f.k_bias : item == 1 ? f.v_bias : f.q_bias;
    const int head_index = item < 2 ? kv_head : head0 + item - 2;
    const float* norm = item == 0 ? f.k_norm : item == 1 ? nullptr : f.q_norm;
    if (biases != nullptr) head.Add(biases + head_index * dim, dim);
    if (norm != nullptr) head.Normalize(norm, dim, f.eps);
    if (item != 1 && f.angles != nullptr) head.Turn(angles, f.pairs, dim);
    if (item >= 2) return head.Store(q_row, dim);
    head.Store((item == 0 ? f.cache.k : f.cache.v) + cache_row, dim);
    __half* const kept = item == 0 ? k_row : v_row;
    if (kept != nullptr) head.Store(kept, dim);
  }
};

// kFinish: q, k and v are finished here (see DecodeAttention()).
template <typename T, int kDim, int kSlots, bool kFinish>
__global__ void __launch_bounds__(kThreads)
    DecodeKernel(AttentionArgs a, Workspace workspace, int most_splits, FinishQkvArgs finish) {
  SHARED_MEMORY(memory);
  DecodeShared<kDim, kSlots>& shared = *reinterpret_cast<DecodeShared<kDim, kSlots>*>(memory);
  constexpr int kOfStage = kStageKeys<kSlots>, kOfWarp = kWarpKeys<kSlots>;  // keys
  SHARED_VARIABLE(last, bool);
  LetNextKernelStart();
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim, group = a.heads / kv_heads;
  const int head_tiles = HeadTiles(a.heads, kv_heads);
  const int kv_head = blockIdx.y / head_tiles, tile = blockIdx.y % head_tiles;
  const int head0 = kv_head * group + tile * kRowsOfWarp;
  const int rows = min(kRowsOfWarp, group - tile * kRowsOfWarp);
  if (!kFinish) WaitForPrecedingKernel();
  const AttentionSequence s = a.sequences[blockIdx.z];
  const Share share(a, s, blockIdx.x, most_splits);
  if (s.rows == 0 || static_cast<int>(blockIdx.x) >= share.splits) {
    if (kFinish) WaitForPrecedingKernel();
    return;
  }
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int32_t* table = a.tables + s.table;

  // Each warp has rows of its own in each slot, for its keys of each stage.
  const uint32_t q = SharedAddress(shared.q);
  constexpr uint32_t kSlotBytes = kOfStage * kRowHalves<kDim> * 2;
  const uint32_t rows0 = SharedAddress(shared.slots[0][warp * kOfWarp]);
  const int stages = (share.stop - share.begin + kOfStage - 1) / kOfStage;
  const int block_size = a.cache.block_size, stride = a.cache.stride();
  const int64_t block_values = a.cache.block_values();
  const auto key0_of = [&](int stage) { return share.begin + stage * kOfStage + warp * kOfWarp; };
  const auto some_seen = [&](int stage) {
    const int key0 = key0_of(stage);
    return stage < stages && key0 < share.stop && key0 + kOfWarp > share.first;
  };
  // The lane's key of a stage, if it is one that is seen and before `stop`.
  const auto find = [&](int stage, int stop) {
    const int key = key0_of(stage) + lane;
    const bool seen = lane < kOfWarp && stage < stages && key >= share.first && key < stop;
    if (!seen) return kNoKey;
    const int logical = key / block_size, place = key - logical * block_size;
    return static_cast<uint32_t>(
        (table[logical] * block_values + (kv_head * block_size + place) * stride) / kPieceHalves);
  };
  // Copy i is of stage i / 2, of k where i is even, else of v. A group each, even where there is
  // nothing: waits count them.
  int slot = 0;  // of the next copy
  const auto copy = [&](const __half* values, int stage, uint32_t piece_of_key) {
    if (some_seen(stage))
      CopyRows<kDim, kOfWarp>(a.cache, values, piece_of_key, rows0 + slot * kSlotBytes, lane);
    CopyAsyncCommit();
    if (++slot == kSlots) slot = 0;
  };
  // The first keys, without the new token's where that is not in the cache yet.
  const int cached = kFinish ? min(share.stop, s.start) : share.stop;
  const uint32_t keys0 = find(0, cached), keys1 = find(1, cached);
  copy(a.cache.k, 0, keys0), copy(a.cache.v, 0, keys0);
  if (kSlots > 2) copy(a.cache.k, 1, keys1);
  if (kSlots > 3) copy(a.cache.v, 1, keys1);
  if constexpr (kFinish) {
    const int64_t t = s.first_row;
    HeadAngles<kDim> angles;
    if (finish.angles != nullptr)
      angles.Load(finish.angles + t * finish.angle_stride, finish.pairs);
    for (int r = rows + warp; r < kRowsOfWarp; r += kWarps) {
      LoadQueryRow<T, kDim>(nullptr, dim, shared.q[r], lane);
    }
    // Features past the head's multiply zeros: q's here, the keys' by the copies.
    for (int r = warp; r < rows; r += kWarps) {
      for (int d = dim + lane; d < kDim; d += kWarp) shared.q[r][d] = __half(0.0f);
    }
    FreshRows<T, kDim> fresh{finish, s, kv_head, head0, rows, share.stop == share.end};
    const int place = s.start - share.begin;
    const int k_copy = place / kOfStage * 2, v_copy = k_copy + 1;
    const bool kept = fresh.owns_key && k_copy < kSlots;
    fresh.k_row = kept ? shared.slots[k_copy][place % kOfStage] : nullptr;
    fresh.v_row = kept && v_copy < kSlots ? shared.slots[v_copy][place % kOfStage] : nullptr;
    fresh.cache_row = fresh.owns_key ? RowOfKey(a.cache, table, s.start, kv_head) : 0;
    if (kept) CopyAsyncWait<0>();  // the copies zero the new key's row
    __syncthreads();
    WaitForPrecedingKernel();
    for (int item = warp; item < 2 + rows; item += 2 * kWarps) {
      const int other = item + kWarps;
      Head<kDim> one, two;  // loads of both are under way at once
      if (fresh.Wanted(item)) one.Load(fresh.From(item), dim);
      if (fresh.Wanted(other)) two.Load(fresh.From(other), dim);
      if (fresh.Wanted(item)) {
        fresh.Finish(item, one, angles, shared.q[max(item - 2, 0)]);
      }
      if (fresh.Wanted(other)) {
        fresh.Finish(other, two, angles, shared.q[other - 2]);
      }
    }
  } else {
    for (int r = warp; r < kRowsOfWarp; r += kWarps) {
      LoadQueryRow<T, kDim>(r < rows ? QueryAt<T>(a, s.first_row, head0 + r) : nullptr, dim,
                            shared.q[r], lane);
    }
  }
  __syncthreads();
  RowsState<kDim, kOfWarp> state;
  // Copy i + kSlots takes the place of copy i: of v's and k's rows alike, or of the other's.
  constexpr bool kOdd = kSlots % 2 != 0;
  uint32_t for_v = find(1, share.stop);
  int used = 0;  // the slot to be worked on
  const auto next_slot = [&] {
    const uint32_t at = rows0 + used * kSlotBytes;
    if (++used == kSlots) used = 0;
    return at;
  };
  for (int stage = 0; stage < stages; ++stage) {
    const int key0 = key0_of(stage);
    const bool any = some_seen(stage);
    const uint32_t for_k = find(stage + 2, share.stop);  // arrives meanwhile
    float scores[kOfWarp / 8][4];
    CopyAsyncWait<kSlots - 1>();
    __syncwarp();
    const uint32_t keys = next_slot();
    if (any) {
      state.Scores(q, keys, lane, scores);
#pragma unroll
      for (int n = 0; n < kOfWarp / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = key0 + n * 8 + lane % 4 * 2 + i % 2;
          const bool seen = key >= share.first && key < share.stop;
          scores[n][i] = seen ? ScoreOf(scores[n][i], a) : kMinusInfinity;
        }
      }
    }
    if constexpr (kSlots != kWhole) {
      __syncwarp();  // the rows may be overwritten
      if (kOdd) {
        copy(a.cache.v, stage + 1, for_v);
      } else {
        copy(a.cache.k, stage + 2, for_k);
      }
    }
    CopyAsyncWait<kSlots == kWhole ? 0 : kSlots - 1>();
    __syncwarp();
    const uint32_t values = next_slot();
    if (any) state.Add(scores, values, lane);
    if constexpr (kSlots != kWhole) {
      __syncwarp();
      copy(kOdd ? a.cache.k : a.cache.v, stage + 2, for_k);
      for_v = for_k;
    }
  }
  CopyAsyncWait<0>();
  state.Finish();

  // The warps' results as one; q and the keys are done with.
  __syncthreads();
  DecodeFound<kDim>& found = *reinterpret_cast<DecodeFound<kDim>*>(memory);
  StoreFound(state, found, rows, warp, lane);
  __syncthreads();
  const int64_t first_head = int64_t{blockIdx.z} * a.heads + head0;
  T* out = static_cast<T*>(a.out) + int64_t{s.first_row} * a.heads * dim + head0 * dim;
  const bool alone = share.splits == 1;
  constexpr int kRowThreads = kDim / 4;  // each with four neighbours of a row
  const int d = threadIdx.x % kRowThreads * 4;
  for (int r = threadIdx.x / kRowThreads; r < rows && d < dim; r += kThreads / kRowThreads) {
    Merged merged;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      merged.Add(found.seen[r][w], *reinterpret_cast<const float4*>(&found.out[w][r][d]));
    }
    const int64_t part = (first_head + r) * kMostDecodeSplits + blockIdx.x;
    if (alone) {
      merged.Store(out + r * dim + d);
    } else {
      *reinterpret_cast<float4*>(workspace.outs + part * dim + d) = merged.sum;
      if (d == 0) workspace.seen[part] = merged.seen;
    }
  }
  if (alone) return;

  // The last block to come adds up the parts, in their order. Everybody's stores come before the
  // barrier, and so before the first thread's fence and count.
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* arrivals = workspace.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
    __threadfence();
    last = atomicAdd(arrivals, 1u) == static_cast<unsigned>(share.splits - 1);
    if (last) *arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int r = threadIdx.x / kRowThreads; r < rows && d < dim; r += kThreads / kRowThreads) {
    const int64_t part = (first_head + r) * kMostDecodeSplits;
    const float* outs = workspace.outs + part * dim + d;
    constexpr int kAtOnce = 4;
    Merged merged;
    for (int p0 = 0; p0 < share.splits; p0 += kAtOnce) {
      LeftPart parts[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int p = min(p0 + i, share.splits - 1);
        parts[i].Load(workspace.seen + part + p, outs + int64_t{p} * dim);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (p0 + i < share.splits) merged.Add(parts[i].seen, parts[i].sum);
      }
    }
    merged.Store(out + r * dim + d);
  }
}

template <typename T, int kDim, int kSlots>
cudaError_t LaunchSlots(dim3 grid, const AttentionArgs& args, const DecodePlan& plan,
                        const Workspace& workspace, const FinishQkvArgs* finish,
                        const Queue& queue) {
  const bool finishes = finish != nullptr;
  const auto kernel =
      finishes ? DecodeKernel<T, kDim, kSlots, true> : DecodeKernel<T, kDim, kSlots, false>;
  const int64_t bytes = std::max(sizeof(DecodeShared<kDim, kSlots>), sizeof(DecodeFound<kDim>));
  return Launch(kernel, grid, kThreads, bytes, queue, args, workspace, plan.most_splits,
                finishes ? *finish : FinishQkvArgs{});
}

template <typename T, int kDim>
cudaError_t LaunchDecode(const AttentionArgs& args, const DecodePlan& plan,
                         const Workspace& workspace, const FinishQkvArgs* finish,
                         const Queue& queue) {
  const int tiles = args.cache.kv_heads * HeadTiles(args.heads, args.cache.kv_heads);
  const dim3 grid(std::min(plan.splits, plan.most_splits), tiles, plan.count);
  // Contexts of kMostDecodeSplits may be longer than one share each.
  if (plan.splits <= plan.most_splits && plan.splits < kMostDecodeSplits)
    return LaunchSlots<T, kDim, kWhole>(grid, args, plan, workspace, finish, queue);
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  return blocks > int64_t{kRingBlocks} * plan.sms
             ? LaunchSlots<T, kDim, kTightRing>(grid, args, plan, workspace, finish, queue)
             : LaunchSlots<T, kDim, kRing>(grid, args, plan, workspace, finish, queue);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArgs& args, const DecodePlan& plan,
                        const Workspace& workspace, const FinishQkvArgs* finish,
                        const Queue& queue) {
  const int dim = args.cache.head_dim;
  if (dim <= 64) return LaunchDecode<T, 64>(args, plan, workspace, finish, queue);
  if (dim <= 128) return LaunchDecode<T, 128>(args, plan, workspace, finish, queue);
  return LaunchDecode<T, 256>(args, plan, workspace, finish, queue);
}

int64_t OutBytes(int64_t parts, int head_dim) { return parts * head_dim * sizeof(float); }

}  // namespace

int64_t DecodeWorkspaceBytes(int sequences, int heads, int head_dim) {
  const int64_t parts = int64_t{sequences} * heads * kMostDecodeSplits;
  return OutBytes(parts, head_dim) + parts * sizeof(Seen) +
         int64_t{sequences} * heads * sizeof(unsigned);
}

cudaError_t DecodeAttention(const AttentionArgs& args, const DecodePlan& plan, const Queue& queue,
                            const FinishQkvArgs* finish) {
  const int64_t parts = int64_t{plan.most_sequences} * args.heads * kMostDecodeSplits;
  auto* const bytes = static_cast<uint8_t*>(plan.workspace);
  Workspace workspace;
  workspace.outs = reinterpret_cast<float*>(bytes);
  workspace.seen = reinterpret_cast<Seen*>(bytes + OutBytes(parts, args.cache.head_dim));
  workspace.arrivals = reinterpret_cast<unsigned*>(workspace.seen + parts);
  return args.dtype == Dtype::kFp16
             ? LaunchTyped<__half>(args, plan, workspace, finish, queue)
             : LaunchTyped<__nv_bfloat16>(args, plan, workspace, finish, queue);
}

}  // namespace babai::cuda
