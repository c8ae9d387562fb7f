#include "kernels/cuda/prefill_rows.cuh"
#include "kernels/cuda/wide_attention.h"

namespace babai::cuda {
namespace {

constexpr int kWarps = kPrefillRows / kRowsOfWarp;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStages = 2;

// Keys of a tile: the sums of wide heads leave fewer registers for scores.
template <int kDim>
constexpr int kTileKeys = kDim > 128 ? 32 : 64;

template <int kDim>
struct PrefillShared {
  __half q[kPrefillRows][kRowHalves<kDim>];
  __half k[kStages][kTileKeys<kDim>][kRowHalves<kDim>];
  __half v[kStages][kTileKeys<kDim>][kRowHalves<kDim>];
};

// Keys [key0, key0 + kTileKeys) to one stage; zeros outside [first, end).
template <int kDim>
__device__ __forceinline__ void CopyTile(const AttentionArgs& a, const int32_t* table, int kv_head,
                                         int key0, int first, int end, uint32_t k, uint32_t v) {
  constexpr int kPieces = kDim / 8;
  const int stride = a.cache.stride();
#pragma unroll
  for (int i = threadIdx.x; i < kTileKeys<kDim> * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces, key = key0 + row;
    const bool valid = key >= first && key < end && piece * 8 < stride;
    int64_t from = 0;
    if (valid) {
      const int64_t block = table[key / a.cache.block_size];
      from =
          a.cache.RowAt(block * a.cache.block_size + key % a.cache.block_size, kv_head) + piece * 8;
    }
    const uint32_t to = row * kRowHalves<kDim> * 2 + piece * 16;
    CopyAsync16OrZero(k + to, a.cache.k + from, valid);
    CopyAsync16OrZero(v + to, a.cache.v + from, valid);
  }
  CopyAsyncCommit();
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 1 : 2)
    PrefillKernel(AttentionArgs a, const PrefillTile* tiles) {
  SHARED_MEMORY(memory);
  PrefillShared<kDim>& shared = *reinterpret_cast<PrefillShared<kDim>*>(memory);
  constexpr int kKeys = kTileKeys<kDim>;
  StartStep();
  const int kv_head = blockIdx.y, dim = a.cache.head_dim;
  const PrefillRows rows(a, PrefillTileOf(tiles));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int32_t* table = a.tables + rows.s.table;
  const int head0 = kv_head * rows.group;

  const PrefillKeys keys(a, rows);
  const int tile0 = keys.first / kKeys, tile_end = (keys.end + kKeys - 1) / kKeys;
  const auto copy = [&](int t) {
    const int stage = t % kStages;
    CopyTile<kDim>(a, table, kv_head, t * kKeys, keys.first, keys.end,
                   SharedAddress(shared.k[stage]), SharedAddress(shared.v[stage]));
  };
  copy(tile0);
  for (int i = 0; i < kRowsOfWarp; ++i) {
    const int r = warp * kRowsOfWarp + i;
    const T* from = nullptr;
    if (r < rows.count)
      from = QueryAt<T>(a, rows.s.first_row + rows.Token(r), head0 + rows.Head(r));
    LoadQueryRow<T, kDim>(from, dim, shared.q[r], lane);
  }
  const int row0 = warp * kRowsOfWarp;
  // Rows past the last see what it sees; nobody reads them.
  const int position[2] = {rows.Position(min(row0 + lane / 4, rows.count - 1)),
                           rows.Position(min(row0 + lane / 4 + 8, rows.count - 1))};
  const uint32_t q = SharedAddress(shared.q[row0]);
  RowsState<kDim, kKeys> state;
#pragma unroll 1
  for (int t = tile0; t < tile_end; ++t) {
    if (t + 1 < tile_end) {
      copy(t + 1);
      CopyAsyncWait<1>();
    } else {
      CopyAsyncWait<0>();
    }
    __syncthreads();
    const int stage = t % kStages, key0 = t * kKeys;
    float scores[kKeys / 8][4];
    state.Scores(q, SharedAddress(shared.k[stage]), lane, scores);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] = ScoreOf(scores[n][i], a);
    }
    if (!keys.Whole(key0, kKeys, a.window)) Mask(scores, a, key0, position, lane);
    state.Add(scores, SharedAddress(shared.v[stage]), lane);
    __syncthreads();  // the stage may be overwritten
  }
  state.Finish();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row0 + lane / 4 + 8 * half;
    if (r >= rows.count) continue;
    const float inverse = 1.0f / state.sum[half];
    T* out = static_cast<T*>(a.out) +
             (int64_t{rows.s.first_row + rows.Token(r)} * a.heads + head0 + rows.Head(r)) * dim;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      const int at = d * 8 + lane % 4 * 2;
      if (at >= dim) continue;
      out[at] = FromFloat<T>(state.out[d][2 * half] * inverse);
      out[at + 1] = FromFloat<T>(state.out[d][2 * half + 1] * inverse);
    }
  }
}

template <typename T>
cudaError_t LaunchTyped(const AttentionArgs& args, const PrefillTile* tiles, int count,
                        const Queue& queue) {
  const dim3 grid(count, args.cache.kv_heads);
  const int dim = args.cache.head_dim;
  if (dim <= 64) {
    return Launch(PrefillKernel<T, 64>, grid, kThreads, sizeof(PrefillShared<64>), queue, args,
                  tiles);
  }
  if (dim <= 128) {
    return Launch(PrefillKernel<T, 128>, grid, kThreads, sizeof(PrefillShared<128>), queue, args,
                  tiles);
  }
  return Launch(PrefillKernel<T, 256>, grid, kThreads, sizeof(PrefillShared<256>), queue, args,
                tiles);
}

}  // namespace

cudaError_t PrefillAttention(const AttentionArgs& args, const PrefillTile* tiles, int count,
                             const Queue& queue) {
  if (WideAttentionTakes(args)) return WideAttention(args, tiles, count, queue);
  return args.dtype == Dtype::kFp16 ? LaunchTyped<__half>(args, tiles, count, queue)
                                    : LaunchTyped<__nv_bfloat16>(args, tiles, count, queue);
}

}  // namespace babai::cuda
