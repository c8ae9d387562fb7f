// Causal attention over the paged cache of kv_cache.h, which already holds the new tokens' keys and
// values: DecodeAttention() for sequences with one new token, PrefillAttention() for chunks.
//
//   roof      keys and values of the context read once (decode); 4 heads head_dim operations for
//             each query and key (prefill)
//   method    online softmax over tiles of keys on mma.m16n8k16, the query heads that share a
//             key/value head as rows of one tile (Dao et al. 2022, arXiv:2205.14135).
//             Decode splits the keys (Flash-Decoding): a block takes 128 keys, or more where the
//             plan allows too few blocks, then 64 at a time through a ring; each of four
//             warps has its share of them; the last block adds the parts in order. It can finish q,
//             k and v itself. Prefill: 128 rows of (token, head) a block, eight
//             warps, keys through a ring of two tiles in shared memory; on Hopper
//             wide_attention.h
//   limits    head_dim a multiple of 8, up to 256; kv_heads divides heads; sm_80 or newer
//   numerics  q, k, v and weights in fp16, sums and softmax fp32. Deterministic; a query's result
//             depends on its own row and its sequence's cache, for decode also on DecodePlan's
//             splits and most_splits
//
// A query at position p sees positions max(0, p - window + 1) .. p. Blocks wholly before the first
// that any query of the call sees are not read, nor are their table entries.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

// New tokens of one sequence: rows first_row .. first_row + rows of q, at positions start and on.
struct AttentionSequence {
  int32_t first_row = 0;
  int32_t rows = 0;  // 0: nothing to do
  int32_t start = 0;
  int32_t table = 0;  // its first entry in `tables`
};

struct AttentionArgs {  // device pointers
  RowsOf q;             // [.., heads * head_dim] of dtype
  void* out;            // [.., heads * head_dim] of dtype, contiguous; rows of these sequences
  KvCache cache;
  const AttentionSequence* sequences;
  const int32_t* tables;  // physical block of each logical block
  int heads;
  float scale;    // scores are scale * q.k
  float softcap;  // > 0: score = softcap * tanh(score / softcap)
  int window;     // > 0: see above
  Dtype dtype;
};

// --- decode

constexpr int kDecodeKeys = 128;  // of a block at a time
constexpr int kMostDecodeSplits = 32;
// What a block takes of an SM's shared memory at most, with heads of up to 128 features.
constexpr int64_t kDecodeBlockBytes = 74 << 10;

// Blocks that may share a sequence of at most `context` keys.
constexpr int DecodeSplits(int64_t context) {
  const int64_t tiles = (context + kDecodeKeys - 1) / kDecodeKeys;
  return static_cast<int>(tiles < kMostDecodeSplits ? tiles : kMostDecodeSplits);
}

// Parts of that many sequences, and a counter for each of their heads: zeroed once, then left
// alone.
int64_t DecodeWorkspaceBytes(int sequences, int heads, int head_dim);

struct DecodePlan {
  int count = 0;                        // sequences [0, count), each with one row or none
  int splits = 0;                       // DecodeSplits() of the longest context, or more
  int most_splits = kMostDecodeSplits;  // blocks a sequence is shared among at most
  void* workspace = nullptr;            // DecodeWorkspaceBytes(most_sequences, ..)
  int most_sequences = 0;               // at least count
  int sms = 0;                          // of the device: what a block keeps there depends on it
};

// `finish`: does what FinishQkv() would do for these sequences' tokens, but leaves q as it is.
// Needs finish->q to be args.q and finish->cache args.cache. Where kernels may start early, what
// finish and args point to besides q, k, v and `out` must be there before the preceding kernel
// starts: it is read meanwhile, as are the cached keys.
cudaError_t DecodeAttention(const AttentionArgs& args, const DecodePlan& plan, const Queue& queue,
                            const FinishQkvArgs* finish = nullptr);

// --- prefill

constexpr int kPrefillRows = 128;  // (token, head of the group) pairs of a block

struct PrefillTile {
  int32_t sequence = 0;
  int32_t tile = 0;  // its (token, head) rows kPrefillRows * tile and on
};
// Tiles of a sequence with `rows` new tokens.
constexpr int PrefillTiles(int64_t rows, int heads, int kv_heads) {
  return static_cast<int>((rows * (heads / kv_heads) + kPrefillRows - 1) / kPrefillRows);
}

cudaError_t PrefillAttention(const AttentionArgs& args, const PrefillTile* tiles, int count,
                             const Queue& queue);

}  // namespace babai::cuda
