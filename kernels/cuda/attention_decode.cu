#include "kernels/cuda/attention.cuh"

namespace babai::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpKeys = kDecodeKeys / kWarps;
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

  __device__ Share(const AttentionArgs& a, const AttentionSequence& s, int split) {
    end = s.start + 1;
    first = a.window > 0 ? max(0, end - a.window) : 0;
    const int tile0 = first / kDecodeKeys, tiles = (end - 1) / kDecodeKeys + 1 - tile0;
    const int each = (tiles + kMostDecodeSplits - 1) / kMostDecodeSplits;
    splits = (tiles + each - 1) / each;
    begin = (tile0 + split * each) * kDecodeKeys;
    stop = min(end, begin + each * kDecodeKeys);
  }
};

// 32 keys from `key0` on, k or v, to the warp's rows of shared memory.
template <int kDim>
__device__ __forceinline__ void CopyKeys(const AttentionArgs& a, const int32_t* table,
                                         const __half* values, int kv_head, const Share& share,
                                         int key0, uint32_t to, int lane) {
  constexpr int kPieces = kDim / 8;  // of 16 bytes
  const int stride = a.cache.stride();
  const int mine = key0 + lane;
  const bool seen = mine >= share.first && mine < share.stop;
  int64_t row = 0;
  if (seen) {
    const int block = table[mine / a.cache.block_size];
    row = a.cache.RowAt(int64_t{block} * a.cache.block_size + mine % a.cache.block_size, kv_head);
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int key = (i * kWarp + lane) / kPieces, piece = (i * kWarp + lane) % kPieces;
    const int64_t from = __shfl_sync(kAllLanes, row, key);
    const bool valid = __shfl_sync(kAllLanes, seen, key) && piece * 8 < stride;
    CopyAsync16OrZero(to + key * kRowHalves<kDim> * 2 + piece * 16,
                      values + from + (valid ? piece * 8 : 0), valid);
  }
}

template <int kDim>
struct DecodeShared {
  __half q[kRowsOfWarp][kRowHalves<kDim>];
  __half k[kDecodeKeys][kRowHalves<kDim>];
  __half v[kDecodeKeys][kRowHalves<kDim>];
};
// What the warps found, in the place of the keys.
template <int kDim>
struct DecodeFound {
  float out[kWarps][kRowsOfWarp][kDim];
  Seen seen[kRowsOfWarp][kWarps], parts[kRowsOfWarp][kMostDecodeSplits], together[kRowsOfWarp];
  float factors[kRowsOfWarp][kMostDecodeSplits];
};

template <int kDim>
__device__ void StoreFound(const RowsState<kDim, kWarpKeys>& state, DecodeFound<kDim>& found,
                           int warp, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = g + 8 * r;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      *reinterpret_cast<float2*>(&found.out[warp][row][d * 8 + 2 * t]) =
          make_float2(state.out[d][2 * r], state.out[d][2 * r + 1]);
    }
    if (t == 0) found.seen[row][warp] = {state.top[r], state.sum[r]};
  }
}

// Parts of one row as one: their factors 2^(top_i - top), and what they have seen together.
__device__ __forceinline__ Seen Together(const Seen* parts, int count) {
  Seen all{kMinusInfinity, 0};
  for (int i = 0; i < count; ++i) all.top = fmaxf(all.top, parts[i].top);
  for (int i = 0; i < count; ++i) {
    if (parts[i].top != kMinusInfinity) all.sum += parts[i].sum * exp2f(parts[i].top - all.top);
  }
  return all;
}
__device__ __forceinline__ float FactorOf(const Seen& part, const Seen& all) {
  return part.top == kMinusInfinity ? 0.0f : exp2f(part.top - all.top);
}

// Four neighbours of a row's sum, over parts `stride` values apart, in their order.
template <typename Load>
__device__ __forceinline__ float4 SumOfParts(const float* factors, int count, const Load& load) {
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const float4 part = load(i);
    sum.x += part.x * factors[i], sum.y += part.y * factors[i];
    sum.z += part.z * factors[i], sum.w += part.w * factors[i];
  }
  return sum;
}

template <typename T>
__device__ __forceinline__ void StoreFour(T* to, const float4& v, float factor) {
  to[0] = FromFloat<T>(v.x * factor), to[1] = FromFloat<T>(v.y * factor);
  to[2] = FromFloat<T>(v.z * factor), to[3] = FromFloat<T>(v.w * factor);
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) DecodeKernel(AttentionArgs a, Workspace workspace) {
  extern __shared__ __align__(16) uint8_t memory[];
  DecodeShared<kDim>& shared = *reinterpret_cast<DecodeShared<kDim>*>(memory);
  __shared__ bool last;
  StartBeforeProduct();
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim, group = a.heads / kv_heads;
  const int head_tiles = HeadTiles(a.heads, kv_heads);
  const int kv_head = blockIdx.y / head_tiles, tile = blockIdx.y % head_tiles;
  const int head0 = kv_head * group + tile * kRowsOfWarp;
  const int rows = min(kRowsOfWarp, group - tile * kRowsOfWarp);
  const AttentionSequence s = a.sequences[blockIdx.z];
  if (s.rows == 0) return;
  const Share share(a, s, blockIdx.x);
  if (static_cast<int>(blockIdx.x) >= share.splits) return;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int32_t* table = a.tables + s.table;

  const uint32_t q = SharedAddress(shared.q);
  const uint32_t k = SharedAddress(shared.k[warp * kWarpKeys]);
  const uint32_t v = SharedAddress(shared.v[warp * kWarpKeys]);
  const auto some_seen = [&](int key0) {
    return key0 < share.stop && key0 + kWarpKeys > share.first;
  };
  const auto copy = [&](int key0) {
    CopyKeys<kDim>(a, table, a.cache.k, kv_head, share, key0, k, lane);
    CopyAsyncCommit();
    CopyKeys<kDim>(a, table, a.cache.v, kv_head, share, key0, v, lane);
    CopyAsyncCommit();
  };
  if (some_seen(share.begin + warp * kWarpKeys)) copy(share.begin + warp * kWarpKeys);
  for (int r = warp; r < kRowsOfWarp; r += kWarps) {
    LoadQueryRow<T, kDim>(r < rows ? QueryAt<T>(a, s.first_row, head0 + r) : nullptr, dim,
                          shared.q[r], lane);
  }
  __syncthreads();
  RowsState<kDim, kWarpKeys> state;
  for (int base = share.begin; base < share.stop; base += kDecodeKeys) {
    const int key0 = base + warp * kWarpKeys;
    if (!some_seen(key0)) continue;
    if (base > share.begin) copy(key0);
    CopyAsyncWait<1>();
    __syncwarp();
    float scores[kWarpKeys / 8][4];
    state.Scores(q, k, lane, scores);
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = key0 + n * 8 + lane % 4 * 2 + i % 2;
        const bool seen = key >= share.first && key < share.stop;
        scores[n][i] = seen ? ScoreOf(scores[n][i], a) : kMinusInfinity;
      }
    }
    CopyAsyncWait<0>();
    __syncwarp();
    state.Add(scores, v, lane);
    __syncwarp();  // the rows may be overwritten
  }
  state.Finish();

  // The warps' results as one; q and the keys are done with.
  __syncthreads();
  DecodeFound<kDim>& found = *reinterpret_cast<DecodeFound<kDim>*>(memory);
  StoreFound<kDim>(state, found, warp, lane);
  auto& seen = found.seen;
  auto& parts = found.parts;
  auto& together = found.together;
  auto& factors = found.factors;
  __syncthreads();
  if (threadIdx.x < rows) {
    const int r = threadIdx.x;
    together[r] = Together(seen[r], kWarps);
    for (int w = 0; w < kWarps; ++w) factors[r][w] = FactorOf(seen[r][w], together[r]);
  }
  __syncthreads();
  const int64_t first_head = int64_t{blockIdx.z} * a.heads + head0;
  T* out = static_cast<T*>(a.out) + int64_t{s.first_row} * a.heads * dim + head0 * dim;
  const bool alone = share.splits == 1;
  constexpr int kRowThreads = kDim / 4;  // each with four neighbours of a row
  const int d = threadIdx.x % kRowThreads * 4;
  for (int r = threadIdx.x / kRowThreads; r < rows && d < dim; r += kThreads / kRowThreads) {
    const float4 sum = SumOfParts(factors[r], kWarps, [&](int w) {
      return *reinterpret_cast<const float4*>(&found.out[w][r][d]);
    });
    const int64_t part = (first_head + r) * kMostDecodeSplits + blockIdx.x;
    if (alone) {
      StoreFour(out + r * dim + d, sum, 1 / together[r].sum);
    } else {
      *reinterpret_cast<float4*>(workspace.outs + part * dim + d) = sum;
      if (d == 0) workspace.seen[part] = together[r];
    }
  }
  if (alone) return;

  // The last block to come adds up the parts, in their order.
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* arrivals = workspace.arrivals + blockIdx.z * gridDim.y + blockIdx.y;
    last = atomicAdd(arrivals, 1u) == static_cast<unsigned>(share.splits - 1);
    if (last) *arrivals = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < rows * kMostDecodeSplits; i += kThreads) {
    const int r = i / kMostDecodeSplits, p = i % kMostDecodeSplits;
    if (p >= share.splits) continue;
    const float2 part = __ldcg(
        reinterpret_cast<const float2*>(workspace.seen + (first_head + r) * kMostDecodeSplits + p));
    parts[r][p] = {part.x, part.y};
  }
  __syncthreads();
  if (threadIdx.x < rows) together[threadIdx.x] = Together(parts[threadIdx.x], share.splits);
  __syncthreads();
  for (int i = threadIdx.x; i < rows * kMostDecodeSplits; i += kThreads) {
    const int r = i / kMostDecodeSplits, p = i % kMostDecodeSplits;
    if (p < share.splits) factors[r][p] = FactorOf(parts[r][p], together[r]);
  }
  __syncthreads();
  for (int r = threadIdx.x / kRowThreads; r < rows && d < dim; r += kThreads / kRowThreads) {
    const float* from = workspace.outs + (first_head + r) * kMostDecodeSplits * dim + d;
    const float4 sum = SumOfParts(factors[r], share.splits, [&](int p) {
      return __ldcg(reinterpret_cast<const float4*>(from + p * dim));
    });
    StoreFour(out + r * dim + d, sum, 1 / together[r].sum);
  }
}

template <typename T, int kDim>
cudaError_t LaunchDecode(const AttentionArgs& args, int count, int splits,
                         const Workspace& workspace, const Queue& queue) {
  constexpr int64_t kBytes = sizeof(DecodeShared<kDim>) > sizeof(DecodeFound<kDim>)
                                 ? sizeof(DecodeShared<kDim>)
                                 : sizeof(DecodeFound<kDim>);
  const int tiles = args.cache.kv_heads * HeadTiles(args.heads, args.cache.kv_heads);
  return Launch(DecodeKernel<T, kDim>, dim3(splits, tiles, count), kThreads, kBytes, queue, args,
                workspace);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArgs& args, int count, int splits,
                        const Workspace& workspace, const Queue& queue) {
  const int dim = args.cache.head_dim;
  if (dim <= 64) return LaunchDecode<T, 64>(args, count, splits, workspace, queue);
  if (dim <= 128) return LaunchDecode<T, 128>(args, count, splits, workspace, queue);
  return LaunchDecode<T, 256>(args, count, splits, workspace, queue);
}

int64_t OutBytes(int64_t parts, int head_dim) { return parts * head_dim * sizeof(float); }

}  // namespace

int64_t DecodeWorkspaceBytes(int sequences, int heads, int head_dim) {
  const int64_t parts = int64_t{sequences} * heads * kMostDecodeSplits;
  return OutBytes(parts, head_dim) + parts * sizeof(Seen) +
         int64_t{sequences} * heads * sizeof(unsigned);
}

cudaError_t DecodeAttention(const AttentionArgs& args, const DecodePlan& plan, const Queue& queue) {
  const int64_t parts = int64_t{plan.most_sequences} * args.heads * kMostDecodeSplits;
  auto* const bytes = static_cast<uint8_t*>(plan.workspace);
  Workspace workspace;
  workspace.outs = reinterpret_cast<float*>(bytes);
  workspace.seen = reinterpret_cast<Seen*>(bytes + OutBytes(parts, args.cache.head_dim));
  workspace.arrivals = reinterpret_cast<unsigned*>(workspace.seen + parts);
  return args.dtype == Dtype::kFp16
             ? LaunchTyped<__half>(args, plan.count, plan.splits, workspace, queue)
             : LaunchTyped<__nv_bfloat16>(args, plan.count, plan.splits, workspace, queue);
}

}  // namespace babai::cuda
