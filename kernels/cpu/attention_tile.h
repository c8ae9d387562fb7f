// Attention of up to 32 query rows that share a key/value head, for any instruction set S. Included
// by kernels_*.cc alone.
#pragma once

#include "kernels/cpu/fp32_tile.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tile.h"

namespace babai::cpu {

// Stands for "no key seen yet": finite, so that differences of maxima never are NaN.
inline constexpr float kNoScore = -1e30f;

// Probabilities [row][kKeyTile]: the tokens of the product with the values.
struct ScoreRows {
  static constexpr int kTokenStride = kKeyTile;
  static constexpr int kStep = 1;
};

template <class S>
struct AttentionTile {
  using F = typename S::F;
  using Gemm = Fp32Tile<S>;

  // Softmax over some keys, not yet divided by its sum. Rows of out are kMaxHeadDim apart.
  struct Softmax {
    alignas(64) float max[kMaxPairs], sum[kMaxPairs];
    alignas(64) float out[kMaxPairs * kMaxHeadDim];
  };

  // What a thread works on; on its stack.
  struct Work {
    alignas(64) float q[kMaxPairs / kTileTokens][kMaxHeadDim * kTileTokens];  // scaled, packed
    alignas(64) float scores[kMaxPairs * kKeyTile];
    int64_t position[kMaxPairs];
    int64_t first_position, last_position;
    Softmax tile, total;
  };

  // Keys or values of a tile, widened: worth it when more than one register tile reads them.
  struct Wide {
    alignas(64) float k[kKeyTile * kMaxHeadDim], v[kKeyTile * kMaxHeadDim];
  };

  // --- where things are

  struct Place {
    const PagedKv& kv;
    const AttentionRows& rows;

    int64_t Slot(int64_t position) const {  // position within [blocks, kv_heads, block_size]
      const int64_t size = kv.shape.block_size;
      const int64_t block = rows.sequence->blocks[position / size];
      return (block * kv.shape.kv_heads + rows.kv_head) * size + position % size;
    }
    template <class T>
    const T* Keys(int64_t position) const {  // position % 16 == 0
      return static_cast<const T*>(kv.k) + Slot(position) * kv.shape.head_dim;
    }
    template <class T>
    const T* Values(int64_t position) const {
      return static_cast<const T*>(kv.v) + Slot(position) * kv.shape.padded_dim();
    }
  };

  static const float* QueryRow(const PagedKv& kv, const AttentionArgs& args,
                               const AttentionRows& rows, int64_t i) {
    const int64_t offset = Offset(kv, args, rows, i, args.ldq);
    return args.q + offset;
  }
  static int64_t Offset(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                        int64_t i, int64_t ld) {
    const int64_t group = args.heads / kv.shape.kv_heads;
    const int64_t pair = rows.first_pair + i;
    const int64_t head = rows.kv_head * group + pair % group;
    return (rows.first_q_row + pair / group) * ld + head * kv.shape.head_dim;
  }

  static void LoadQueries(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                          Work& work) {
    const int64_t group = args.heads / kv.shape.kv_heads;
    for (int64_t i = 0; i < rows.pairs; ++i) {
      work.position[i] = rows.sequence->start + (rows.first_pair + i) / group;
      const float* q = QueryRow(kv, args, rows, i);
      float* packed = work.q[i / kTileTokens] + i % kTileTokens;
      for (int d = 0; d < kv.shape.head_dim; ++d) packed[d * kTileTokens] = q[d] * args.scale;
    }
    work.first_position = work.position[0];
    work.last_position = work.position[rows.pairs - 1];
  }

  // --- one tile of keys

  // The tile's keys that some row may see: [begin, end) of it, begin a multiple of 16. Rows that
  // see fewer mask the rest, which adds exact zeros to their sums.
  struct Span {
    int64_t base, begin, end;
  };
  static Span Visible(const Work& work, const AttentionArgs& args, int64_t tile) {
    const int64_t base = tile * kKeyTile;
    const int64_t last = work.last_position + 1 - base;
    const int64_t first = FirstSeen(work.first_position, args.window) - base;
    return {base, first > 0 ? first / kLanes * kLanes : 0, last < kKeyTile ? last : kKeyTile};
  }
  static int64_t PaddedEnd(const Span& span) { return (span.end + kLanes - 1) / kLanes * kLanes; }
  static int64_t FirstSeen(int64_t position, int64_t window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }

  // panels[i]: the keys span.begin + 16 i .. + 15.
  template <class T>
  static void Scores(const T* const* panels, const Span& span, int head_dim, int64_t pairs,
                     Work& work) {
    const int count = static_cast<int>((PaddedEnd(span) - span.begin) / kLanes);
    const Output out = {work.scores, kKeyTile, nullptr, kKeyTile};
    for (int64_t row = 0; row < pairs; row += kTileTokens) {
      const int rows = static_cast<int>(pairs - row < kTileTokens ? pairs - row : kTileTokens);
      const typename Gemm::Part part = {
          work.q[row / kTileTokens], head_dim, kLanes, true, true, row, span.begin / kLanes};
      Gemm::template AllPanels<PackedTokens>(panels, count, part, rows, out);
    }
  }

  // Scores of a row to exponentials, with the tile's own maximum.
  static void Exponentials(const AttentionArgs& args, const Span& span, int64_t row, Work& work) {
    float* s = work.scores + row * kKeyTile;
    const int64_t end = PaddedEnd(span);
    if (args.softcap > 0) Softcap(s, span.begin, end, args.softcap);
    Mask(s, span.begin, end, FirstSeen(work.position[row], args.window) - span.base,
         work.position[row] + 1 - span.base);
    F most = S::Set1(kNoScore);
    for (int64_t i = span.begin; i < end; i += kLanes) most = S::Max(most, S::Load(s + i));
    const float max = S::ReduceMax(most);
    F sum = S::Zero();
    for (int64_t i = span.begin; i < end; i += kLanes) {
      const F e = RowTile<S>::Exp(S::Sub(S::Load(s + i), S::Set1(max)));
      S::Store(s + i, e);
      sum = S::Add(sum, e);
    }
    work.tile.max[row] = max;
    work.tile.sum[row] = S::ReduceAdd(sum);
  }
  static void Softcap(float* s, int64_t begin, int64_t end, float cap) {
    for (int64_t i = begin; i < end; i += kLanes) {
      const F t = RowTile<S>::Tanh(S::Div(S::Load(s + i), S::Set1(cap)));
      S::Store(s + i, S::Mul(t, S::Set1(cap)));
    }
  }
  // Of the scores [begin, end), leaves those in [from, to).
  static void Mask(float* s, int64_t begin, int64_t end, int64_t from, int64_t to) {
    for (int64_t i = begin; i < from && i < end; ++i) s[i] = -__builtin_inff();
    for (int64_t i = to > begin ? to : begin; i < end; ++i) s[i] = -__builtin_inff();
  }

  // tile.out (+)= exponentials [from, from + keys) * v, v [keys][step].
  template <class T>
  static void AddValues(const T* v, int64_t step, int64_t from, int64_t keys, bool first,
                        int64_t pairs, int padded_dim, Work& work) {
    const Output out = {work.tile.out, kMaxHeadDim, nullptr, padded_dim};
    const T* panels[kMaxHeadDim / kLanes];
    const int count = padded_dim / kLanes;
    for (int p = 0; p < count; ++p) panels[p] = v + p * kLanes;
    for (int64_t row = 0; row < pairs; row += kTileTokens) {
      const int rows = static_cast<int>(pairs - row < kTileTokens ? pairs - row : kTileTokens);
      const typename Gemm::Part part = {
          work.scores + row * kKeyTile + from, keys, step, first, true, row, 0};
      Gemm::template AllPanels<ScoreRows>(panels, count, part, rows, out);
    }
  }

  // Few rows: keys and values are read where they lie.
  template <class T>
  static void TileInPlace(const Place& at, const AttentionArgs& args, const Span& span,
                          Work& work) {
    const KvShape& shape = at.kv.shape;
    const T* panels[kKeyTile / kLanes];
    for (int64_t i = span.begin, p = 0; i < span.end; i += kLanes, ++p) {
      panels[p] = at.template Keys<T>(span.base + i);
    }
    Scores(panels, span, shape.head_dim, at.rows.pairs, work);
    for (int64_t r = 0; r < at.rows.pairs; ++r) Exponentials(args, span, r, work);
    const int64_t size = shape.block_size;
    for (int64_t from = span.begin; from < span.end;) {
      const int64_t position = span.base + from;
      const int64_t in_block = size - position % size;
      const int64_t keys = span.end - from < in_block ? span.end - from : in_block;
      AddValues(at.template Values<T>(position), shape.padded_dim(), from, keys, from == span.begin,
                at.rows.pairs, shape.padded_dim(), work);
      from += keys;
    }
  }

  // Many rows: the tile is widened to fp32 once.
  template <class T>
  static void TileWidened(const Place& at, const AttentionArgs& args, const Span& span, Wide& wide,
                          Work& work) {
    const KvShape& shape = at.kv.shape;
    const int64_t panel_size = int64_t{shape.head_dim} * kLanes;
    const float* panels[kKeyTile / kLanes];
    for (int64_t i = span.begin, p = 0; i < span.end; i += kLanes, ++p) {
      Widen(at.template Keys<T>(span.base + i), panel_size, wide.k + p * panel_size);
      panels[p] = wide.k + p * panel_size;
    }
    Scores(panels, span, shape.head_dim, at.rows.pairs, work);
    for (int64_t r = 0; r < at.rows.pairs; ++r) Exponentials(args, span, r, work);
    const int64_t step = shape.padded_dim();
    for (int64_t i = span.begin; i < span.end; ++i) {
      Widen(at.template Values<T>(span.base + i), step, wide.v + (i - span.begin) * step);
    }
    AddValues(wide.v, step, span.begin, span.end - span.begin, true, at.rows.pairs,
              shape.padded_dim(), work);
  }
  template <class T>
  static void Widen(const T* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += kLanes) S::Store(to + i, S::Load(from + i));
  }

  // --- merging tiles

  static void Clear(int64_t pairs, int padded_dim, Softmax& s) {
    for (int i = 0; i < kMaxPairs; ++i) s.max[i] = kNoScore, s.sum[i] = 0;
    for (int64_t r = 0; r < pairs; ++r) {
      for (int d = 0; d < padded_dim; d += kLanes) S::Store(s.out + r * kMaxHeadDim + d, S::Zero());
    }
  }

  // total row r takes in a tile's maximum, sum and values.
  static void Merge(int64_t r, float max, float sum, const float* out, int padded_dim,
                    Softmax& total) {
    const float most = max > total.max[r] ? max : total.max[r];
    alignas(64) float factors[kLanes];
    const F both = S::Set1(most);
    float shifts[kLanes] = {total.max[r], max};
    S::Store(factors, RowTile<S>::Exp(S::Sub(S::Load(shifts), both)));
    const F keep = S::Set1(factors[0]), take = S::Set1(factors[1]);
    total.max[r] = most;
    total.sum[r] = total.sum[r] * factors[0] + sum * factors[1];
    float* row = total.out + r * kMaxHeadDim;
    for (int d = 0; d < padded_dim; d += kLanes) {
      S::Store(row + d, S::Fma(S::Load(row + d), keep, S::Mul(S::Load(out + d), take)));
    }
  }

  static void WriteRows(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                        const Softmax& total) {
    const int head_dim = kv.shape.head_dim;
    for (int64_t r = 0; r < rows.pairs; ++r) {
      float* y = args.out + Offset(kv, args, rows, r, args.ldo);
      const F inverse = S::Set1(1.0f / total.sum[r]);
      RowTile<S>::Along(head_dim, [&](int64_t d, int lanes) {
        RowTile<S>::Put(y, d, lanes, S::Mul(S::Load(total.out + r * kMaxHeadDim + d), inverse));
      });
    }
  }

  // --- entries of the kernel table

  template <class T>
  static void OneTile(const Place& at, const AttentionArgs& args, const Span& span, Work& work) {
    if (span.begin >= span.end) {
      return Clear(at.rows.pairs, at.kv.shape.padded_dim(), work.tile);
    }
    if (at.rows.pairs <= kTileTokens) return TileInPlace<T>(at, args, span, work);
    Wide wide;
    TileWidened<T>(at, args, span, wide, work);
  }

  static void Attend(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                     float* partial) {
    Work work;
    const Place at = {kv, rows};
    const int dim = kv.shape.padded_dim();
    LoadQueries(kv, args, rows, work);
    Clear(rows.pairs, dim, work.total);
    for (int64_t t = 0; t < rows.tiles; ++t) {
      const Span span = Visible(work, args, rows.first_tile + t);
      if (kv.shape.type == FloatType::kF32) {
        OneTile<float>(at, args, span, work);
      } else {
        OneTile<Half>(at, args, span, work);
      }
      for (int64_t r = 0; r < rows.pairs; ++r) {
        const float* out = work.tile.out + r * kMaxHeadDim;
        if (partial == nullptr) {
          Merge(r, work.tile.max[r], work.tile.sum[r], out, dim, work.total);
        } else {
          partial = Save(work.tile.max[r], work.tile.sum[r], out, dim, partial);
        }
      }
    }
    if (partial == nullptr) WriteRows(kv, args, rows, work.total);
  }
  static float* Save(float max, float sum, const float* out, int dim, float* partial) {
    partial[0] = max;
    partial[1] = sum;
    for (int d = 0; d < dim; d += kLanes) S::Store(partial + 2 + d, S::Load(out + d));
    return partial + 2 + dim;
  }

  static void MergeSaved(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                         const float* partial) {
    Softmax total;
    const int dim = kv.shape.padded_dim();
    Clear(rows.pairs, dim, total);
    for (int64_t t = 0; t < rows.tiles; ++t) {
      for (int64_t r = 0; r < rows.pairs; ++r, partial += dim + 2) {
        Merge(r, partial[0], partial[1], partial + 2, dim, total);
      }
    }
    WriteRows(kv, args, rows, total);
  }
};

}  // namespace babai::cpu
