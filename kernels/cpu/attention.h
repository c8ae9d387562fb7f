// Causal attention over a paged key/value cache: decode steps and prefill chunks of any number of
// sequences in one call.
//
//   method    keys in tiles of 128, scores and values by register-tiled fp32 multiply-adds; every
//             tile has its own softmax, tiles are merged in order (Dao et al. 2022,
//             arXiv:2205.14135; Flash-Decoding's split over keys)
//   numerics  fp32. A query's output depends on its own row and its sequence's cache alone: the
//   same
//             bits alone or in a batch, in decode or prefill, for any number of threads
//   limits    head_dim 1..256, block_size a multiple of 16, kv_heads divides heads
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/float16.h"

namespace babai::cpu {

// One layer's cache shape.
struct KvShape {
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 16;               // positions a block
  FloatType type = FloatType::kF16;  // kF16 or kF32

  int padded_dim() const { return (head_dim + 15) / 16 * 16; }
};

// Bytes of one block of keys, and of one block of values.
int64_t KvKeyBlockBytes(const KvShape& shape);
int64_t KvValueBlockBytes(const KvShape& shape);

// One layer's cache; the caller owns both buffers (zeroed once, aligned to 64).
//   k  [blocks, kv_heads, block_size / 16, head_dim, 16]   lanes are positions
//   v  [blocks, kv_heads, block_size, padded_dim]          lanes are features, padding is 0
struct PagedKv {
  KvShape shape;
  void* k = nullptr;
  void* v = nullptr;
};

// Consecutive new tokens of one sequence. Their rows in q, k, v follow those of the entry before.
struct SequenceRows {
  const int32_t* blocks = nullptr;  // block of positions [i * block_size, (i + 1) * block_size)
  int64_t start = 0;                // position of the first row
  int64_t rows = 0;                 // how many
};

// Writes k and v [rows, kv_heads * head_dim] (rows ld floats apart; rotary embedding applied) to
// their positions. No two rows may share a slot.
void AppendKv(const PagedKv& kv, absl::Span<const SequenceRows> sequences, const float* k,
              const float* v, int64_t ld, ThreadPool& pool);

struct AttentionArgs {
  const float* q = nullptr;  // [rows, heads * head_dim], rows ldq floats apart
  int64_t ldq = 0;
  float* out = nullptr;  // the same shape, rows ldo floats apart; may not alias q
  int64_t ldo = 0;
  int heads = 0;
  float scale = 0;             // scores are scale * q.k
  float softcap = 0;           // > 0: score = softcap * tanh(score / softcap)
  int64_t window = 0;          // > 0: a query sees its last `window` positions, itself included
  uint8_t* scratch = nullptr;  // AttentionScratchBytes(), aligned to 64
  int64_t scratch_bytes = 0;   // fewer are allowed: long contexts then use fewer threads
};

// Enough scratch for any batch whose contexts have at most `max_context` positions.
int64_t AttentionScratchBytes(const KvShape& shape, int64_t max_context, int threads);

// A query at position p sees positions 0..p of its sequence, which AppendKv has written. With a
// window, blocks that end before it are not read: they may have been given back.
void PagedAttention(const PagedKv& kv, absl::Span<const SequenceRows> sequences,
                    const AttentionArgs& args, ThreadPool& pool);

}  // namespace babai::cpu
