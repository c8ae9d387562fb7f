#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

constexpr int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Keys are split over threads only for this few query rows an item: a decode step, not a prefill.
constexpr int64_t kMaxSplitPairs = 16;
// Rows smaller than this in all are appended by the caller alone.
constexpr int64_t kSerialFloats = 16 << 10;

// Cuts a call into items: up to 32 (query, head) pairs of one sequence and one key/value head.
class Items {
 public:
  Items(const PagedKv& kv, absl::Span<const SequenceRows> sequences, const AttentionArgs& args)
      : kv_heads_(kv.shape.kv_heads),
        group_(args.heads / kv.shape.kv_heads),
        window_(args.window),
        sequences_(sequences) {}

  int64_t count() const {
    int64_t total = 0;
    for (const SequenceRows& s : sequences_) total += ItemsOf(s);
    return total;
  }

  // Calls visit(index, rows) for the items first, first + step, ... in order.
  template <class Visit>
  void ForEach(int64_t first, int64_t step, Visit visit) const {
    int64_t index = first, begin = 0, q_row = 0;
    for (const SequenceRows& s : sequences_) {
      const int64_t end = begin + ItemsOf(s);
      for (; index < end; index += step) visit(index, Item(s, q_row, index - begin));
      begin = end;
      q_row += s.rows;
    }
  }

 private:
  int64_t Blocks(const SequenceRows& s) const { return CeilDiv(s.rows * group_, kMaxPairs); }
  int64_t ItemsOf(const SequenceRows& s) const { return Blocks(s) * kv_heads_; }

  AttentionRows Item(const SequenceRows& s, int64_t q_row, int64_t i) const {
    const int64_t first = i % Blocks(s) * kMaxPairs;
    AttentionRows rows = {&s, q_row, static_cast<int>(i / Blocks(s)), first,
                          std::min<int64_t>(kMaxPairs, s.rows * group_ - first)};
    const int64_t from = s.start + first / group_;
    const int64_t to = s.start + (first + rows.pairs - 1) / group_;
    const int64_t seen = window_ > 0 ? std::max<int64_t>(0, from - window_ + 1) : 0;
    rows.first_tile = seen / kKeyTile;
    rows.tiles = to / kKeyTile + 1 - rows.first_tile;
    return rows;
  }

  int64_t kv_heads_, group_, window_;
  absl::Span<const SequenceRows> sequences_;
};

// A call whose items are too few for the threads, cut further by key tiles.
struct Split {
  bool worthwhile = false;
  int64_t tiles = 0;  // of all items
};

int64_t PartialFloats(const KvShape& shape, const AttentionRows& rows) {
  return rows.tiles * rows.pairs * (shape.padded_dim() + 2);
}

Split PlanSplit(const PagedKv& kv, const AttentionArgs& args, const Items& items, int threads) {
  const int64_t count = items.count();
  if (threads == 1 || count >= 2 * threads) return {};
  int64_t tiles = 0, floats = 0, most_pairs = 0;
  items.ForEach(0, 1, [&](int64_t, const AttentionRows& rows) {
    tiles += rows.tiles;
    floats += PartialFloats(kv.shape, rows);
    most_pairs = std::max(most_pairs, rows.pairs);
  });
  const bool fits = args.scratch != nullptr && floats * 4 <= args.scratch_bytes;
  return {fits && most_pairs <= kMaxSplitPairs && tiles > count, tiles};
}

// Tiles [begin, end), counted over all items. An item's partial results start where the items
// before end.
void AttendTiles(const PagedKv& kv, const AttentionArgs& args, const Items& items, int64_t begin,
                 int64_t end) {
  auto* partial = reinterpret_cast<float*>(args.scratch);
  int64_t before = 0;
  items.ForEach(0, 1, [&](int64_t, const AttentionRows& rows) {
    const int64_t from = std::max<int64_t>(begin - before, 0);
    const int64_t to = std::min(end - before, rows.tiles);
    if (from < to) {
      AttentionRows part = rows;
      part.first_tile += from;
      part.tiles = to - from;
      const int64_t skipped = PartialFloats(kv.shape, rows) / rows.tiles * from;
      Kernels().attend(kv, args, part, partial + skipped);
    }
    before += rows.tiles;
    partial += PartialFloats(kv.shape, rows);
  });
}

void MergeTiles(const PagedKv& kv, const AttentionArgs& args, const Items& items, int64_t index,
                int64_t step) {
  const auto* partial = reinterpret_cast<const float*>(args.scratch);
  items.ForEach(0, 1, [&](int64_t i, const AttentionRows& rows) {
    if (i % step == index) Kernels().merge(kv, args, rows, partial);
    partial += PartialFloats(kv.shape, rows);
  });
}

// --- AppendKv

void Narrow(const float* x, float* out, int64_t n) { std::memcpy(out, x, n * sizeof(float)); }
void Narrow(const float* x, uint16_t* out, int64_t n) { Kernels().to_half(x, out, n); }

template <class T>
void AppendRow(const PagedKv& kv, int64_t block, int64_t offset, const float* k, const float* v) {
  const KvShape& shape = kv.shape;
  const int64_t dim = shape.head_dim, padded = shape.padded_dim();
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    const int64_t head = (block * shape.kv_heads + h) * shape.block_size;
    T* keys = static_cast<T*>(kv.k) + (head + offset / kLanes * kLanes) * dim + offset % kLanes;
    T* values = static_cast<T*>(kv.v) + (head + offset) * padded;
    T narrow[kMaxHeadDim];
    Narrow(k + h * dim, narrow, dim);
    for (int64_t d = 0; d < dim; ++d) keys[d * kLanes] = narrow[d];
    Narrow(v + h * dim, values, dim);
    std::fill(values + dim, values + padded, T{0});
  }
}

// Rows [begin, end) counted over all sequences.
void AppendRows(const PagedKv& kv, absl::Span<const SequenceRows> sequences, const float* k,
                const float* v, int64_t ld, int64_t begin, int64_t end) {
  const int64_t size = kv.shape.block_size;
  int64_t before = 0;
  for (const SequenceRows& s : sequences) {
    const int64_t to = std::min(end - before, s.rows);
    for (int64_t i = std::max<int64_t>(begin - before, 0); i < to; ++i) {
      const int64_t position = s.start + i, at = (before + i) * ld;
      const int64_t block = s.blocks[position / size];
      if (kv.shape.type == FloatType::kF32) {
        AppendRow<float>(kv, block, position % size, k + at, v + at);
      } else {
        AppendRow<uint16_t>(kv, block, position % size, k + at, v + at);
      }
    }
    before += s.rows;
  }
}

}  // namespace

int64_t KvKeyBlockBytes(const KvShape& shape) {
  return int64_t{shape.kv_heads} * shape.block_size * shape.head_dim * FloatTypeBytes(shape.type);
}

int64_t KvValueBlockBytes(const KvShape& shape) {
  return int64_t{shape.kv_heads} * shape.block_size * shape.padded_dim() *
         FloatTypeBytes(shape.type);
}

void AppendKv(const PagedKv& kv, absl::Span<const SequenceRows> sequences, const float* k,
              const float* v, int64_t ld, ThreadPool& pool) {
  int64_t rows = 0;
  for (const SequenceRows& s : sequences) rows += s.rows;
  const auto append = [&](int64_t begin, int64_t end) {
    AppendRows(kv, sequences, k, v, ld, begin, end);
  };
  if (rows * kv.shape.kv_heads * kv.shape.head_dim <= kSerialFloats) return append(0, rows);
  pool.ParallelFor(rows, kLanes, append);
}

int64_t AttentionScratchBytes(const KvShape& shape, int64_t max_context, int threads) {
  const int64_t tiles = max_context / kKeyTile + 1;
  return 2 * threads * kMaxSplitPairs * tiles * (shape.padded_dim() + 2) * 4;
}

void PagedAttention(const PagedKv& kv, absl::Span<const SequenceRows> sequences,
                    const AttentionArgs& args, ThreadPool& pool) {
  const Items items(kv, sequences, args);
  const Split split = PlanSplit(kv, args, items, pool.threads());
  if (split.worthwhile) {
    pool.ParallelFor(split.tiles, 1,
                     [&](int64_t begin, int64_t end) { AttendTiles(kv, args, items, begin, end); });
    pool.RunOnAll([&](int index, int threads) { MergeTiles(kv, args, items, index, threads); });
    return;
  }
  // Later queries see more keys: dealing items out in turn balances the threads.
  pool.RunOnAll([&](int index, int threads) {
    items.ForEach(index, threads, [&](int64_t, const AttentionRows& rows) {
      Kernels().attend(kv, args, rows, nullptr);
    });
  });
}

}  // namespace babai::cpu
