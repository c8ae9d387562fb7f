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

// H = L L' in sweep order, for descent: for each block of kFactorBlock columns all padded_k rows,
// each kFactorBlock values. Beyond k it is 0.
template <typename T>
struct MetricView {
  const T* values = nullptr;
  const T* inverse_diag = nullptr;  // [k] 1 / H_pp
  const T* diag = nullptr;          // [k] H_pp
};

// ---- grids, as a tile sees them: lanes have their own parameters -------------------------------

// value = scale * (code - zero), code in min_code..max_code.
template <typename T>
struct UniformTile {
  const T* scales = nullptr;  // [groups, kLanes]
  const T* zeros = nullptr;   // [groups, kLanes]
  int64_t group = 0;
  T min_code = 0, max_code = 0;
};

// value = scale * levels[code], code in 0..count-1.
template <typename T>
struct TableTile {
  const T* scales = nullptr;  // [groups, kLanes]
  const T* levels = nullptr;  // [count, kLanes] ascending
  // [count + 1, kLanes]: middles[i] lies between levels i-1 and i; the first and the last are as
  // far beyond the ends as those next to them are inside: what is beyond them overflows.
  const T* middles = nullptr;
  int64_t group = 0;
  int32_t count = 0;
};

// Codes that are integers of format F6 reach so far.
inline constexpr int32_t kLargestInteger = 32767;
// A table of coded lengths has 2 * kRateReach + 1 entries a context; larger integers cost as much
// as the last one.
inline constexpr int32_t kRateReach = 128;
inline constexpr int32_t kRateEntries = 2 * kRateReach + 1;

// z = round(u / steps[c]), value = z * values[c]; with rates, see IntegerGrid.
template <typename T>
struct IntegerTile {
  const T* steps = nullptr;   // [k]
  const T* values = nullptr;  // [k]
  // [contexts, kRateEntries] what integer -kRateReach.. costs, rate_weight times bits; null:
  // nothing
  const float* rates = nullptr;
  const int32_t* row_class = nullptr;  // [kLanes]
  const uint8_t* col_class = nullptr;  // [k]
  int32_t contexts = 0;
};

// Where the loops leave what they decide; arrays are [k, kLanes] by original column.
template <typename T>
struct TileCodes {
  int32_t* codes = nullptr;
  int32_t* clipped = nullptr;     // [kLanes], incremented
  T* wanted = nullptr;            // or null: what was rounded (kBabai only)
  T* beside = nullptr;            // or null: what is stored beside the grid; 0 for nothing
  const uint8_t* kept = nullptr;  // with beside, or null: 1 = store beside the grid
  bool keep_overflow = false;     // with beside: so does what the grid would clip
};

// In TileOps::best's parents: what this solution wanted was outside the grid, and not kept.
inline constexpr uint8_t kWantedOutside = 0x80;

// ---- loops -------------------------------------------------------------------------------------

// `weights` is [k, kLanes] in original column order. `error` is [padded k, kLanes] in sweep order
// and receives w - q, with zeros beyond k.
template <typename T, typename Grid>
struct TileOps {
  // Babai's nearest plane, last sweep position first; `losses` [kLanes] receives ||(w - q) L||^2.
  void (*babai)(const FactorView<T>& factor, const T* weights, const Grid& grid,
                const TileCodes<T>& out, T* error, double* losses);
  // Every weight to its nearest grid value. A null `order` is the original one.
  void (*nearest)(const int32_t* order, int64_t k, const T* weights, const Grid& grid,
                  const TileCodes<T>& out, T* error);
  // The best `beam` partial solutions of each row. Lanes are `slots` (a power of two, at least
  // `beam`, at most 16) copies of each of kLanes / slots rows, everywhere. Positions, not columns,
  // index `out.codes` and `out.beside`, and `parents` [k, kLanes] says from which lane's solution
  // each lane's went on; the best solution of a row ends in its first lane, whose error is
  // complete. `out.clipped` is left alone.
  void (*best)(const FactorView<T>& factor, const T* weights, const Grid& grid,
               const TileCodes<T>& out, int beam, int slots, uint8_t* parents, T* error);
  // One pass of coordinate descent from the solution in out and error; counts the changes.
  int64_t (*descend)(const FactorView<T>& factor, const MetricView<T>& metric, const T* weights,
                     const Grid& grid, const TileCodes<T>& out, T* error);
};

// The loops that no grid takes part in.
template <typename T>
struct TileSums {
  // losses = ||x L||^2 for a tile x [padded k, kLanes] in sweep order.
  void (*norms)(const FactorView<T>& factor, const T* x, double* losses);
  // sums [kFactorBlock, kLanes] = l' x for l [rows, kFactorBlock], x [rows, kLanes].
  void (*products)(const T* l, const T* x, int64_t rows, T* sums);
};

template <typename T, typename Grid>
const TileOps<T, Grid>& TileOpsForCpu();
template <typename T>
const TileSums<T>& TileSumsForCpu();

// ---- fits --------------------------------------------------------------------------------------

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

// One group of columns whose scale of a fixed table is searched.
struct FitTableTile {
  const float* weights = nullptr;     // [columns, kLanes<float>]
  const float* importance = nullptr;  // [columns, kLanes<float>]
  int64_t columns = 0;
  const float* levels = nullptr;   // [count] ascending
  const float* middles = nullptr;  // [count - 1]
  int32_t count = 0;
  const float* shrinks = nullptr;  // candidates for largest value / largest weight; at least one
  int64_t candidates = 0;
};

// Rows of patterns of grid points that are tried on all lanes. A pattern is `count` ascending
// points v_0 < v_1 < ... of a linear grid; its squared error, up to what does not depend on the
// pattern, is
//   v_last^2 mass - 2 v_last moment + sum_i (v_i - v_{i-1}) cuts[v_{i-1} + v_i]
struct PatternTile {
  const uint8_t* patterns = nullptr;  // [number, count]
  int64_t number = 0;
  int32_t count = 0;
  const float* cuts = nullptr;    // [half steps of the grid, kLanes<float>]
  const float* mass = nullptr;    // [kLanes<float>]
  const float* moment = nullptr;  // [kLanes<float>]
};

struct FitOps {
  // Chooses, for each lane, the candidate with the least sum of importance * (w - q)^2. `scales`
  // [kLanes] receives values that fp16 holds exactly, unless the range needs more than fp16 can
  // hold.
  void (*scales)(const FitTile& tile, float* scales, float* zeros);
  // The same for a table.
  void (*table_scales)(const FitTableTile& tile, float* scales);
  // The pattern of least error, and that error, for each lane.
  void (*best_patterns)(const PatternTile& tile, int32_t* best, float* error);
};
const FitOps& FitOpsForCpu();

}  // namespace babai
