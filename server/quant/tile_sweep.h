// The sweep, rounding to nearest and coordinate descent: part of tile_kernels.h, see there.
#pragma once

#include <cstdint>

#include "server/quant/tile.h"
#include "server/quant/tile_round.h"

namespace babai {
namespace {

// Register tile: kSumColumns x kSumVectors accumulators. Two vectors of loads feed eight
// multiply-adds with 16 registers (AVX2, SSE); with 32 (AVX-512) a whole factor block fits.
constexpr int64_t kSumColumns = BABAI_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int64_t kSumVectors = 2;

// sums[c][lane] = sum over rows of l[row][c] * x[row][lane], for the part of the block and of the
// lanes given by the template. Strictly in the order of rows: the same bits whatever the tile.
template <typename T>
inline void SumPart(const T* l, const T* x, int64_t rows, T* sums) {
  constexpr int64_t per_vector = BABAI_VECTOR_BYTES / sizeof(T);
  Vector<T> acc[kSumColumns][kSumVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const auto* xv = reinterpret_cast<const Vector<T>*>(x + r * kLanes<T>);
#pragma GCC unroll 8
    for (int64_t c = 0; c < kSumColumns; ++c) {
#pragma GCC unroll 2
      for (int64_t v = 0; v < kSumVectors; ++v) acc[c][v] += l[r * kFactorBlock + c] * xv[v];
    }
  }
  for (int64_t c = 0; c < kSumColumns; ++c) {
    for (int64_t v = 0; v < kSumVectors; ++v) {
      *reinterpret_cast<Vector<T>*>(sums + c * kLanes<T> + v * per_vector) = acc[c][v];
    }
  }
}

// sums [kFactorBlock, kLanes] = (rows of a factor block)' x.
template <typename T>
void SumBlock(const T* l, const T* x, int64_t rows, T* sums) {
  constexpr int64_t lanes = kSumVectors * BABAI_VECTOR_BYTES / sizeof(T);
  for (int64_t c = 0; c < kFactorBlock; c += kSumColumns) {
    for (int64_t v = 0; v < kLanes<T>; v += lanes) {
      SumPart(l + c, x + v, rows, sums + c * kLanes<T> + v);
    }
  }
}

template <typename T>
inline void AddScaled(T factor, const T* x, T* sum) {
  for (int64_t i = 0; i < kLanes<T>; ++i) sum[i] += factor * x[i];
}

// Rounds u for one column and leaves the result in r and out.
template <typename T, typename Grid>
inline void Settle(const Grid& grid, int64_t column, T cost, const T* u, const TileCodes<T>& out,
                   Rounded<T>& r) {
  Round(grid, column, cost, u, r);
  if (out.beside != nullptr) KeepBeside(out, column, u, out.beside + column * kLanes<T>, r);
  int32_t* codes = out.codes + column * kLanes<T>;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    codes[i] = r.code[i];
    out.clipped[i] += r.outside[i];
  }
}

// One column of the sweep. `interference` is sum over later positions of L[later, p] (w -
// q)[later]: what their rounding errors ask of this one, so that only errors, never weights, are
// multiplied by L.
template <typename T, typename Grid>
inline void NearestPlane(const FactorView<T>& f, int64_t p, const T* weights, const Grid& grid,
                         const TileCodes<T>& out, const T* interference, T* error, double* losses) {
  const int64_t column = f.order[p];
  const T* w = weights + column * kLanes<T>;
  const T inverse = f.inverse_diag[p], diag = f.diag[p];
  alignas(64) T u[kLanes<T>];
  Rounded<T> r;
  for (int64_t i = 0; i < kLanes<T>; ++i) u[i] = w[i] + interference[i] * inverse;
  Settle(grid, column, diag * diag, u, out, r);
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    error[i] = w[i] - r.value[i];
    const double y = diag * (u[i] - r.value[i]);
    losses[i] += y * y;
  }
  if (out.wanted == nullptr) return;
  for (int64_t i = 0; i < kLanes<T>; ++i) out.wanted[column * kLanes<T> + i] = u[i];
}

template <typename T>
inline void ClearBeyond(int64_t k, T* error) {
  for (int64_t x = k * kLanes<T>; x < RoundUpToBlock(k) * kLanes<T>; ++x) error[x] = 0;
}

template <typename T, typename Grid>
void Babai(const FactorView<T>& f, const T* weights, const Grid& grid, const TileCodes<T>& out,
           T* error, double* losses) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) losses[i] = 0;
  ClearBeyond(f.k, error);
  for (int64_t b = padded / kFactorBlock - 1; b >= 0; --b) {
    const T* own = f.columns + FactorBlockOffset(b, padded);
    T* block_error = error + b * kFactorBlock * kLanes<T>;
    SumBlock(own + kFactorBlock * kFactorBlock, block_error + kFactorBlock * kLanes<T>,
             padded - (b + 1) * kFactorBlock, sums);
    for (int64_t c = kFactorBlock - 1; c >= 0; --c) {
      const int64_t p = b * kFactorBlock + c;
      if (p >= f.k) continue;
      T* interference = sums + c * kLanes<T>;
      for (int64_t later = c + 1; later < kFactorBlock; ++later) {
        AddScaled(own[later * kFactorBlock + c], block_error + later * kLanes<T>, interference);
      }
      NearestPlane(f, p, weights, grid, out, interference, block_error + c * kLanes<T>, losses);
    }
  }
}

template <typename T, typename Grid>
void Nearest(const int32_t* order, int64_t k, const T* weights, const Grid& grid,
             const TileCodes<T>& out, T* error) {
  Rounded<T> r;
  ClearBeyond(k, error);
  for (int64_t p = 0; p < k; ++p) {
    const int64_t column = order != nullptr ? order[p] : p;
    const T* w = weights + column * kLanes<T>;
    Settle(grid, column, T{1}, w, out, r);
    for (int64_t i = 0; i < kLanes<T>; ++i) error[p * kLanes<T> + i] = w[i] - r.value[i];
  }
}

template <typename T>
void Norms(const FactorView<T>& f, const T* x, double* losses) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T sums[kFactorBlock * kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) losses[i] = 0;
  for (int64_t b = 0; b < padded / kFactorBlock; ++b) {
    const int64_t first = b * kFactorBlock;
    SumBlock(f.columns + FactorBlockOffset(b, padded), x + first * kLanes<T>, padded - first, sums);
    for (int64_t c = 0; c < kFactorBlock; ++c) {
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        losses[i] += static_cast<double>(sums[c * kLanes<T> + i]) * sums[c * kLanes<T> + i];
      }
    }
  }
}

// A change must lower the loss by more than the rounding of the gradient can feign.
template <typename T>
constexpr T kWorthChanging = sizeof(T) == 4 ? T(1 - 1e-4) : T(1 - 1e-12);

// Moves one column of a complete solution to its best values; `gradient` is sum over all positions
// of H[., p] (w - q). `moved` receives what was added to q.
template <typename T, typename Grid>
inline int64_t Move(const FactorView<T>& f, const MetricView<T>& m, int64_t p, const T* weights,
                    const Grid& grid, const TileCodes<T>& out, const T* gradient, T* error,
                    T* moved) {
  const int64_t column = f.order[p];
  const T* w = weights + column * kLanes<T>;
  int32_t* code = out.codes + column * kLanes<T>;
  const T cost = m.diag[p], inverse = m.inverse_diag[p];
  alignas(64) T u[kLanes<T>], now[kLanes<T>], then[kLanes<T>];
  Rounded<T> r;
  for (int64_t i = 0; i < kLanes<T>; ++i) u[i] = (w[i] - error[i]) + gradient[i] * inverse;
  Round(grid, column, cost, u, r);
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const T off = gradient[i] * inverse, off_then = u[i] - r.value[i];
    now[i] = cost * (off * off);
    then[i] = cost * (off_then * off_then);
  }
  AddRates(grid, column, code, now);
  AddRates(grid, column, r.code, then);
  const uint8_t* kept = out.kept != nullptr ? out.kept + column * kLanes<T> : nullptr;
  const T* beside = out.beside != nullptr ? out.beside + column * kLanes<T> : nullptr;
  int64_t changes = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    const bool fixed = (kept != nullptr && kept[i] != 0) || (beside != nullptr && beside[i] != 0);
    const bool take = !fixed && r.code[i] != code[i] && then[i] < now[i] * kWorthChanging<T>;
    const T next = take ? w[i] - r.value[i] : error[i];
    moved[i] = error[i] - next;
    error[i] = next;
    code[i] = take ? r.code[i] : code[i];
    changes += take;
  }
  return changes;
}

// The gradient of eight columns is summed afresh from all errors: as many operations as updating it
// after every change, without its traffic and without drift.
template <typename T, typename Grid>
int64_t Descend(const FactorView<T>& f, const MetricView<T>& m, const T* weights, const Grid& grid,
                const TileCodes<T>& out, T* error) {
  const int64_t padded = RoundUpToBlock(f.k);
  alignas(64) T sums[kFactorBlock * kLanes<T>], moved[kLanes<T>];
  int64_t changes = 0;
  for (int64_t b = padded / kFactorBlock - 1; b >= 0; --b) {
    const T* columns = m.values + b * kFactorBlock * padded;
    const T* own = columns + b * kFactorBlock * kFactorBlock;
    SumBlock(columns, error, padded, sums);
    for (int64_t c = kFactorBlock - 1; c >= 0; --c) {
      const int64_t p = b * kFactorBlock + c;
      if (p >= f.k) continue;
      const int64_t changed =
          Move(f, m, p, weights, grid, out, sums + c * kLanes<T>, error + p * kLanes<T>, moved);
      changes += changed;
      if (changed == 0) continue;
      for (int64_t next = 0; next < c; ++next) {
        AddScaled(-own[c * kFactorBlock + next], moved, sums + next * kLanes<T>);
      }
    }
  }
  return changes;
}

}  // namespace
}  // namespace babai
