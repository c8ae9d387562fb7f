// The sweep with several partial solutions a row: part of tile_kernels.h, see there.
//
// Lanes are solutions: `slots` neighbouring lanes belong to one row, best first. Each column
// extends every solution by the nearest grid value and its two neighbours, ranks the row's
// candidates and keeps the best. A solution that descends from another lane's needs that lane's
// errors: within a block of columns only the block's own rows are exchanged, and the history once
// at its end, by the composition of the block's exchanges. Codes are not exchanged at all:
// `parents` leads back.
#pragma once

#include <cstdint>

#include "server/quant/tile.h"
#include "server/quant/tile_round.h"
#include "server/quant/tile_sweep.h"

namespace babai {
namespace {

constexpr int kChoices = 3;  // the nearest value and the one to each side of it
constexpr int kMostSlots = 16;
// No solution. Sums and comparisons treat it as any number.
template <typename T>
constexpr T kNever = static_cast<T>(__builtin_inff());

// Which lane, within its row, each lane of a tile takes over from.
template <typename T>
struct Exchange {
  alignas(64) int32_t from[kLanes<T>];
};

template <typename T>
inline void Apply(const Exchange<T>& e, T* row) {
#if BABAI_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {  // a row of solutions lies within one vector of 16
    using Index [[gnu::vector_size(64), gnu::may_alias]] = int32_t;
    for (int64_t v = 0; v < kLanes<T>; v += 16) {
      auto* at = reinterpret_cast<Vector<T>*>(row + v);
      *at = __builtin_shuffle(*at, *reinterpret_cast<const Index*>(e.from + v) & 15);
    }
    return;
  }
#endif
  alignas(64) T before[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) before[i] = row[i];
  for (int64_t i = 0; i < kLanes<T>; ++i) row[i] = before[e.from[i]];
}

// What each lane's solution may go on with. [choice][lane].
template <typename T>
struct Choices {
  alignas(64) T score[kChoices][kLanes<T>];
  alignas(64) T value[kChoices][kLanes<T>];
  alignas(64) T beside[kLanes<T>];  // of the first choice
  alignas(64) int32_t code[kChoices][kLanes<T>];
  alignas(64) int32_t outside[kLanes<T>];  // the first choice's
};

// The neighbour on the side of u first, then the other one.
template <typename T, typename Grid>
inline void AddNeighbours(const Grid& grid, int64_t column, T cost, const T* u, const T* score,
                          const uint8_t* alone, Choices<T>& c) {
  const int32_t first = FirstCode(grid), last = LastCode(grid);
  for (int choice = 1; choice < kChoices; ++choice) {
    alignas(64) int32_t valid[kLanes<T>];
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      const int32_t step = (u[i] > c.value[0][i]) == (choice == 1) ? 1 : -1;
      const int32_t wanted = c.code[0][i] + step;
      c.code[choice][i] = Clamp(wanted, first, last);
      valid[i] = wanted == c.code[choice][i] && alone[i] == 0;
    }
    Decode(grid, column, c.code[choice], c.value[choice]);
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      const T d = u[i] - c.value[choice][i];
      c.score[choice][i] = valid[i] != 0 ? score[i] + cost * (d * d) : kNever<T>;
    }
    AddRates(grid, column, c.code[choice], c.score[choice]);
  }
}

template <typename T, typename Grid>
inline void FindChoices(const Grid& grid, int64_t column, T cost, const T* u, const T* score,
                        const TileCodes<T>& out, Choices<T>& c) {
  Rounded<T> r;
  alignas(64) uint8_t alone[kLanes<T>] = {};  // a value that is kept has no alternative
  Round(grid, column, cost, u, r);
  if (out.beside != nullptr) {
    const uint8_t* kept = out.kept != nullptr ? out.kept + column * kLanes<T> : nullptr;
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      alone[i] = (kept != nullptr && kept[i] != 0) || (out.keep_overflow && r.outside[i] != 0);
    }
    KeepBeside(out, column, u, c.beside, r);
  }
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const T d = u[i] - r.value[i];
    c.code[0][i] = r.code[i];
    c.outside[i] = r.outside[i];
    c.value[0][i] = r.value[i];
    c.score[0][i] = score[i] + cost * (d * d);
  }
  AddRates(grid, column, r.code, c.score[0]);
  AddNeighbours(grid, column, cost, u, score, alone, c);
}

// best[rank] = index of the candidate of that rank, for n candidates; equal scores go by index.
template <typename T>
inline void RankCandidates(const T* score, int n, int32_t* best) {
  alignas(64) int32_t rank[kChoices * kMostSlots] = {};
  for (int j = 0; j < n; ++j) {
    const T s = score[j];
    for (int i = 0; i <= j; ++i) rank[i] += s < score[i];
    for (int i = j + 1; i < n; ++i) rank[i] += s <= score[i];
  }
  for (int i = 0; i < n; ++i) best[i] = i;  // in case NaN gave two the same rank
  for (int i = 0; i < n; ++i) best[rank[i]] = i;
}

// Fills `exchange` and `choice` [lanes] and the lanes' new scores.
template <typename T>
void SelectBest(const Choices<T>& c, int beam, int slots, Exchange<T>& exchange, int32_t* choice,
                T* score) {
  alignas(64) T candidates[kChoices * kMostSlots];
  alignas(64) int32_t best[kChoices * kMostSlots];
  for (int64_t row = 0; row < kLanes<T>; row += slots) {
    for (int n = 0; n < kChoices; ++n) {
      for (int s = 0; s < slots; ++s) candidates[n * slots + s] = c.score[n][row + s];
    }
    RankCandidates(candidates, kChoices * slots, best);
    for (int s = 0; s < slots; ++s) {
      exchange.from[row + s] = static_cast<int32_t>(row) + best[s] % slots;
      choice[row + s] = best[s] / slots;
      score[row + s] = s < beam ? candidates[best[s]] : kNever<T>;
    }
  }
}

// What a block of columns keeps while its solutions change places.
template <typename T>
struct BestBlock {
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  T* error;                // [kFactorBlock, kLanes], in place
  Exchange<T> all;         // composition of the block's exchanges
  bool exchanged = false;  // whether it is anything but the identity

  void Permute(const Exchange<T>& e, int64_t c) {
    bool same = true;
    for (int64_t i = 0; i < kLanes<T>; ++i) same &= e.from[i] == i;
    if (same) return;
    exchanged = true;
    for (int64_t row = 0; row < c; ++row) Apply(e, sums + row * kLanes<T>);
    for (int64_t row = c + 1; row < kFactorBlock; ++row) Apply(e, error + row * kLanes<T>);
    const Exchange<T> before = all;
    for (int64_t i = 0; i < kLanes<T>; ++i) all.from[i] = before.from[e.from[i]];
  }
};

template <typename T, typename Grid>
inline void BestColumn(const FactorView<T>& f, int64_t p, const T* weights, const Grid& grid,
                       const TileCodes<T>& out, int beam, int slots, uint8_t* parents, T* score,
                       BestBlock<T>& block) {
  const int64_t column = f.order[p], c = p % kFactorBlock;
  const T* w = weights + column * kLanes<T>;
  const T* interference = block.sums + c * kLanes<T>;
  const T inverse = f.inverse_diag[p], diag = f.diag[p];
  alignas(64) T u[kLanes<T>];
  alignas(64) int32_t choice[kLanes<T>];
  Choices<T> choices;
  Exchange<T> exchange;
  for (int64_t i = 0; i < kLanes<T>; ++i) u[i] = w[i] + interference[i] * inverse;
  FindChoices(grid, column, diag * diag, u, score, out, choices);
  SelectBest(choices, beam, slots, exchange, choice, score);
  block.Permute(exchange, c);
  T* error = block.error + c * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const int32_t from = exchange.from[i];
    error[i] = w[i] - choices.value[choice[i]][from];
    out.codes[p * kLanes<T> + i] = choices.code[choice[i]][from];
    parents[p * kLanes<T> + i] =
        static_cast<uint8_t>(from | (choices.outside[from] != 0 ? kWantedOutside : 0));
    if (out.beside != nullptr) {
      out.beside[p * kLanes<T> + i] = choice[i] == 0 ? choices.beside[from] : T{0};
    }
  }
}

template <typename T, typename Grid>
void Best(const FactorView<T>& f, const T* weights, const Grid& grid, const TileCodes<T>& out,
          int beam, int slots, uint8_t* parents, T* error) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T score[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) score[i] = i % slots == 0 ? T{0} : kNever<T>;
  ClearBeyond(f.k, error);
  BestBlock<T> block;
  for (int64_t b = padded / kFactorBlock - 1; b >= 0; --b) {
    const T* own = f.columns + FactorBlockOffset(b, padded);
    block.error = error + b * kFactorBlock * kLanes<T>;
    block.exchanged = false;
    for (int64_t i = 0; i < kLanes<T>; ++i) block.all.from[i] = static_cast<int32_t>(i);
    T* history = block.error + kFactorBlock * kLanes<T>;
    SumBlock(own + kFactorBlock * kFactorBlock, history, padded - (b + 1) * kFactorBlock,
             block.sums);
    for (int64_t c = kFactorBlock - 1; c >= 0; --c) {
      const int64_t p = b * kFactorBlock + c;
      if (p >= f.k) continue;
      for (int64_t later = c + 1; later < kFactorBlock; ++later) {
        AddScaled(own[later * kFactorBlock + c], block.error + later * kLanes<T>,
                  block.sums + c * kLanes<T>);
      }
      BestColumn(f, p, weights, grid, out, beam, slots, parents, score, block);
    }
    if (!block.exchanged) continue;
    for (T* row = history; row < error + padded * kLanes<T>; row += kLanes<T>) {
      Apply(block.all, row);
    }
  }
}

}  // namespace
}  // namespace babai
