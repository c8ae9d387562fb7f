// The inner loops of quantization over a tile: kLanes rows of W side by side, stored by column.
//
// Rows never meet in any of these loops, so a row is a vector lane, a tile is a task for one
// thread, and no result depends on which tile or thread a row fell into. Tiles are [columns,
// kLanes] arrays. Each instruction set compiles tile_kernels.h once; TileOpsFor picks the best that
// the CPU has.
#pragma once

#include <cstdint>

namespace babai {

// Two 64-byte vectors a column: enough independent sums to hide the latency of a fused
// multiply-add.
template <typename T>
inline constexpr int64_t kLanes = 128 / static_cast<int64_t>(sizeof(T));

// Columns of the factor that are summed in registers together.
inline constexpr int64_t kFactorBlock = 8;

inline constexpr int64_t RoundUpToBlock(int64_t k) {
  return (k + kFactorBlock - 1) / kFactorBlock * kFactorBlock;
}

// The Cholesky factor as the loops read it. `columns` holds, for each block b of kFactorBlock
// columns, rows 8b .. padded_k-1, each kFactorBlock values: sequential in the order of use. Rows
// beyond k are 0.
template <typename T>
struct FactorView {
  const T* columns = nullptr;
  const T* diag = nullptr;          // L_pp
  const T* inverse_diag = nullptr;  // 1 / L_pp
  const int32_t* order = nullptr;   // original column at sweep position p
  int64_t k = 0;
};

// First value of block b in FactorView::columns.
inline constexpr int64_t FactorBlockOffset(int64_t b, int64_t padded_k) {
  return kFactorBlock * b * padded_k - kFactorBlock * kFactorBlock / 2 * b * (b - 1);
}

// A tile's part of a UniformGrid, and where its codes go. Code = uint8_t clips to 0..max_code;
// Code = int32_t is the unbounded integer grid, for which the Babai bound is a theorem.
template <typename T, typename CodeT>
struct UniformTile {
  using Code = CodeT;
  const T* scales = nullptr;  // [groups, kLanes]
  const T* zeros = nullptr;   // [groups, kLanes]
  int64_t group = 0;
  T max_code = 0;
  Code* codes = nullptr;       // [k, kLanes], original column order
  int32_t* clipped = nullptr;  // [kLanes], incremented
};

// `weights` is [k, kLanes] in original column order. `error` is [padded k, kLanes] in sweep order
// and receives w - q, with zeros beyond k; `losses` [kLanes] receives ||(w - q) L||^2.
template <typename T, typename Grid>
struct TileOps {
  // Babai's nearest plane, last sweep position first.
  void (*babai)(const FactorView<T>& factor, const T* weights, const Grid& grid, T* error,
                double* losses);
  // Every weight to its nearest grid value. `error` is in original column order here.
  void (*nearest)(int64_t k, const T* weights, const Grid& grid, T* error);
  // losses = ||x L||^2 for a tile x [padded k, kLanes] in sweep order.
  void (*norms)(const FactorView<T>& factor, const T* x, double* losses);
};

template <typename T, typename Grid>
const TileOps<T, Grid>& TileOpsForCpu();

// One group of columns whose scale (and zero) is searched.
struct FitTile {
  const float* weights = nullptr;     // [columns, kLanes<float>]
  const float* importance = nullptr;  // [columns]; weight of a column's squared error
  int64_t columns = 0;
  float max_code = 0;
  bool symmetric = false;
  const float* shrinks = nullptr;  // candidate ranges, as fractions of the full range; at least one
  int64_t candidates = 0;
  float zero_reach = 0;  // zero points up to this far from the range's own are tried too
};

// Chooses, for each lane, the candidate with the least sum of importance * (w - q)^2. `scales`
// [kLanes] receives values that fp16 holds exactly, unless the range needs more than fp16 can hold.
using FitTileFn = void (*)(const FitTile& tile, float* scales, float* zeros);
FitTileFn FitTileForCpu();

}  // namespace babai
