#include "kernels/cuda/attention.cuh"

namespace babai::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpKeys = kDecodeKeys / kWarps;

// Where the blocks of a sequence's head leave their parts.
struct Workspace {
  float* parts;        // [sequences, heads, splits][head_dim + 2]: sums, largest score, weight
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
  float top[kWarps][kRowsOfWarp], sum[kWarps][kRowsOfWarp];
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
      found.out[warp][row][d * 8 + 2 * t] = state.out[d][2 * r];
      found.out[warp][row][d * 8 + 2 * t + 1] = state.out[d][2 * r + 1];
    }
    if (t == 0) found.top[warp][row] = state.top[r], found.sum[warp][row] = state.sum[r];
  }
}

// Parts with largest scores top[i] and weights sum[i], as one: the factor of each is
// 2^(top[i] - top) / total weight.
struct Merge {
  float top = kMinusInfinity, total = 0;
  __device__ __forceinline__ void See(float part_top, float part_sum) {
    const float most = fmaxf(top, part_top);
    if (most == kMinusInfinity) return;
    total = total * exp2f(top - most) + part_sum * exp2f(part_top - most);
    top = most;
  }
  __device__ __forceinline__ float Factor(float part_top) const {
    return part_top == kMinusInfinity ? 0.0f : exp2f(part_top - top);
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps* kWarp)
    DecodeKernel(AttentionArgs a, Workspace workspace) {
  extern __shared__ __align__(16) uint8_t memory[];
  DecodeShared<kDim>& shared = *reinterpret_cast<DecodeShared<kDim>*>(memory);
  __shared__ bool last;
  StartStep();
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

  for (int r = warp; r < kRowsOfWarp; r += kWarps) {
    LoadQueryRow<T, kDim>(r < rows ? QueryAt<T>(a, s.first_row, head0 + r) : nullptr, dim,
                          shared.q[r], lane);
  }
  __syncthreads();
  const uint32_t q = SharedAddress(shared.q);
  const uint32_t k = SharedAddress(shared.k[warp * kWarpKeys]);
  const uint32_t v = SharedAddress(shared.v[warp * kWarpKeys]);
  RowsState<kDim, kWarpKeys> state;
  for (int base = share.begin; base < share.stop; base += kDecodeKeys) {
    const int key0 = base + warp * kWarpKeys;
    if (key0 >= share.stop || key0 + kWarpKeys <= share.first) continue;
    CopyKeys<kDim>(a, table, a.cache.k, kv_head, share, key0, k, lane);
    CopyAsyncCommit();
    CopyKeys<kDim>(a, table, a.cache.v, kv_head, share, key0, v, lane);
    CopyAsyncCommit();
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
  __syncthreads();
  const int64_t first_head = int64_t{blockIdx.z} * a.heads + head0;
  const int part_floats = dim + 2;
  T* out = static_cast<T*>(a.out) + int64_t{s.first_row} * a.heads * dim + head0 * dim;
  for (int i = threadIdx.x; i < rows * dim; i += kWarps * kWarp) {
    const int r = i / dim, d = i % dim;
    Merge merge;
    for (int w = 0; w < kWarps; ++w) merge.See(found.top[w][r], found.sum[w][r]);
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += found.out[w][r][d] * merge.Factor(found.top[w][r]);
    if (share.splits == 1) {
      out[i] = FromFloat<T>(sum / merge.total);
      continue;
    }
    float* part =
        workspace.parts + ((first_head + r) * kMostDecodeSplits + blockIdx.x) * part_floats;
    part[d] = sum;
    if (d == 0) part[dim] = merge.top, part[dim + 1] = merge.total;
  }
  if (share.splits == 1) return;

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
  for (int i = threadIdx.x; i < rows * dim; i += kWarps * kWarp) {
    const int r = i / dim, d = i % dim;
    const float* parts = workspace.parts + (first_head + r) * kMostDecodeSplits * part_floats;
    Merge merge;
    for (int p = 0; p < share.splits; ++p) {
      merge.See(__ldcg(parts + p * part_floats + dim), __ldcg(parts + p * part_floats + dim + 1));
    }
    float sum = 0;
    for (int p = 0; p < share.splits; ++p) {
      sum +=
          __ldcg(parts + p * part_floats + d) * merge.Factor(__ldcg(parts + p * part_floats + dim));
    }
    out[i] = FromFloat<T>(sum / merge.total);
  }
}

template <typename T, int kDim>
cudaError_t LaunchDecode(const AttentionArgs& args, int count, int splits,
                         const Workspace& workspace, const Queue& queue) {
  constexpr int64_t kBytes = sizeof(DecodeShared<kDim>) > sizeof(DecodeFound<kDim>)
                                 ? sizeof(DecodeShared<kDim>)
                                 : sizeof(DecodeFound<kDim>);
  const int tiles = args.cache.kv_heads * HeadTiles(args.heads, args.cache.kv_heads);
  return Launch(DecodeKernel<T, kDim>, dim3(splits, tiles, count), kWarps * kWarp, kBytes, queue,
                args, workspace);
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArgs& args, int count, int splits,
                        const Workspace& workspace, const Queue& queue) {
  const int dim = args.cache.head_dim;
  if (dim <= 64) return LaunchDecode<T, 64>(args, count, splits, workspace, queue);
  if (dim <= 128) return LaunchDecode<T, 128>(args, count, splits, workspace, queue);
  return LaunchDecode<T, 256>(args, count, splits, workspace, queue);
}

int64_t PartBytes(int sequences, int heads, int head_dim) {
  return int64_t{sequences} * heads * kMostDecodeSplits * (head_dim + 2) * sizeof(float);
}

}  // namespace

int64_t DecodeWorkspaceBytes(int sequences, int heads, int head_dim) {
  return PartBytes(sequences, heads, head_dim) + int64_t{sequences} * heads * sizeof(unsigned);
}

cudaError_t DecodeAttention(const AttentionArgs& args, const DecodePlan& plan, const Queue& queue) {
  Workspace workspace;
  workspace.parts = static_cast<float*>(plan.workspace);
  workspace.arrivals =
      reinterpret_cast<unsigned*>(static_cast<uint8_t*>(plan.workspace) +
                                  PartBytes(plan.most_sequences, args.heads, args.cache.head_dim));
  return args.dtype == Dtype::kFp16
             ? LaunchTyped<__half>(args, plan.count, plan.splits, workspace, queue)
             : LaunchTyped<__nv_bfloat16>(args, plan.count, plan.splits, workspace, queue);
}

}  // namespace babai::cuda
