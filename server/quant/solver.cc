#include "server/quant/solver.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <new>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"
#include "server/quant/grid_tile.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// One value beside the grid.
struct Entry {
  int64_t row;
  uint16_t column, value;
};

// Entries [tiles][..], each tile's by row and column, as one matrix.
SparseRows CollectSparse(const std::vector<std::vector<Entry>>& tiles, int64_t rows, int64_t cols) {
  SparseRows out;
  out.rows = rows;
  out.cols = cols;
  out.row_begin.assign(rows + 1, 0);
  for (const auto& entries : tiles) {
    for (const Entry& e : entries) {
      ++out.row_begin[e.row + 1];
      out.columns.push_back(e.column);
      out.values.push_back(e.value);
    }
  }
  std::partial_sum(out.row_begin.begin(), out.row_begin.end(), out.row_begin.begin());
  return out;
}

// sweep [padded k, lanes] = original [k, lanes] in sweep order, zeros beyond k.
template <typename T>
void ToSweepOrder(const FactorView<T>& f, const T* original, T* sweep) {
  for (int64_t p = 0; p < f.k; ++p) {
    std::copy_n(original + f.order[p] * kLanes<T>, kLanes<T>, sweep + p * kLanes<T>);
  }
  std::fill_n(sweep + f.k * kLanes<T>, (RoundUpToBlock(f.k) - f.k) * kLanes<T>, T{0});
}

template <typename T>
void PlainNorms(const T* x, int64_t k, double* losses) {
  std::fill_n(losses, kLanes<T>, 0.0);
  for (int64_t c = 0; c < k; ++c) {
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      losses[i] += static_cast<double>(x[c * kLanes<T> + i]) * x[c * kLanes<T> + i];
    }
  }
}

// Solves tile after tile; one object for all threads.
template <typename T, typename Grid>
class TileSolver {
 public:
  using Tiles = typename TilesFor<T, Grid>::type;
  using Tile = typename Tiles::Tile;
  using Code = CodeOf<Grid>;

  TileSolver(const SolveOptions& options, absl::Span<const float> w, const Grid& grid,
             const PackedFactor<T>* factor)
      : options_(options), w_(w), rows_(grid.rows), k_(grid.cols), tiles_(grid) {
    if (factor != nullptr) {
      factor_ = factor->view();
      metric_ = factor->metric();
    }
    slots_ = static_cast<int>(std::bit_ceil(static_cast<unsigned>(options.beam)));
    const int64_t count = (rows_ + kLanes<T> - 1) / kLanes<T>;
    out_.codes.resize(rows_ * k_);
    out_.losses.resize(rows_);
    out_.reference_losses.resize(rows_);
    clipped_.resize(count);
    if (keeps()) entries_.resize(count);
    if (options.column_sums) sums_.resize(count * 2 * k_);
  }

  absl::StatusOr<Solution<Code>> Run(ThreadPool& pool, const std::function<bool()>& stop) {
    Carver counter(nullptr);
    Reserve(counter);
    const absl::Status done =
        ForEachTile(rows_, kLanes<T>, counter.used(), pool, stop,
                    [&](TileRows rows, uint8_t* memory) { SolveTile(rows, memory); });
    if (!done.ok()) return done;
    if (no_memory_) {
      return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                    "no memory for the values beside the grid");
    }
    out_.clipped = std::accumulate(clipped_.begin(), clipped_.end(), int64_t{0});
    out_.sparse = CollectSparse(entries_, rows_, k_);
    if (options_.column_sums) AddColumnSums();
    return std::move(out_);
  }

 private:
  // The arrays of one solving: a whole tile, or the copies of some of its rows.
  struct Space {
    T *weights, *error, *beside, *wanted;
    int32_t* codes;
    uint8_t *kept, *parents;
    typename Tiles::Space grid;
  };
  struct Spaces {
    Space tile, copies;
  };

  bool keeps() const { return options_.kept != nullptr || options_.keep_overflow; }
  bool has_factor() const { return factor_.columns != nullptr; }
  bool beams() const { return options_.solver == Solver::kKBest; }

  Space ReserveOne(Carver& carver, bool copies) const {
    const int64_t count = k_ * kLanes<T>;
    Space s = {};
    s.weights = carver.Take<T>(count);
    s.error = carver.Take<T>(RoundUpToBlock(k_) * kLanes<T>);
    s.codes = carver.Take<int32_t>(count);
    if (keeps()) s.beside = carver.Take<T>(count);
    if (options_.kept != nullptr) s.kept = carver.Take<uint8_t>(count);
    if (options_.column_sums && !copies) s.wanted = carver.Take<T>(count);
    if (copies) s.parents = carver.Take<uint8_t>(count);
    s.grid = tiles_.Reserve(carver);
    return s;
  }
  Spaces Reserve(Carver& carver) const {
    const Space tile = ReserveOne(carver, false);
    return {tile, beams() ? ReserveOne(carver, true) : Space{}};
  }

  TileCodes<T> OutputOf(const Space& s, int32_t* clipped) const {
    return {s.codes, clipped, s.wanted, s.beside, s.kept, options_.keep_overflow};
  }

  void SolveTile(TileRows rows, uint8_t* memory) {
    Carver carver(memory);
    const Spaces spaces = Reserve(carver);
    const Space& s = spaces.tile;
    double losses[kLanes<T>], reference[kLanes<T>];
    int32_t clipped[kLanes<T>] = {};
    LoadTile(w_.data(), k_, rows, kLanes<T>, s.weights);
    if (s.kept != nullptr) LoadTile(options_.kept->data(), k_, rows, kLanes<T>, s.kept);
    const Tile grid = tiles_.Load(rows, s.grid);
    if (has_factor()) {
      ToSweepOrder(factor_, s.weights, s.error);
      sums_ops_.norms(factor_, s.error, reference);
    } else {
      PlainNorms(s.weights, k_, reference);
    }
    if (beams()) {
      for (int64_t first = 0; first < rows.count; first += kLanes<T> / slots_) {
        SolveBeams(grid, spaces, {first, slots_}, rows, clipped);
      }
    } else {
      SolveRows(grid, s, OutputOf(s, clipped), losses);
    }
    Descend(grid, s, OutputOf(s, clipped));
    if (has_factor() && (options_.descent_passes > 0 || options_.solver != Solver::kBabai)) {
      sums_ops_.norms(factor_, s.error, losses);
    }
    Store(rows, s, clipped, losses, reference);
  }

  void SolveRows(const Tile& grid, const Space& s, const TileCodes<T>& out, double* losses) const {
    if (options_.solver == Solver::kBabai) {
      ops_.babai(factor_, s.weights, grid, out, s.error, losses);
      return;
    }
    if (s.wanted != nullptr) std::copy_n(s.weights, k_ * kLanes<T>, s.wanted);
    ops_.nearest(factor_.order, k_, s.weights, grid, out, s.error);
    if (!has_factor()) PlainNorms(s.error, k_, losses);
  }

  void SolveBeams(const Tile& grid, const Spaces& spaces, LaneCopies copies, TileRows rows,
                  int32_t* clipped) const;
  void Descend(const Tile& grid, const Space& s, const TileCodes<T>& out) const {
    for (int pass = 0; pass < options_.descent_passes; ++pass) {
      if (ops_.descend(factor_, metric_, s.weights, grid, out, s.error) == 0) return;
    }
  }
  void Store(TileRows rows, const Space& s, const int32_t* clipped, const double* losses,
             const double* reference);
  void StoreEntries(TileRows rows, const Space& s);
  void StoreSums(TileRows rows, const Space& s);
  void AddColumnSums();

  const SolveOptions& options_;
  const absl::Span<const float> w_;
  const int64_t rows_, k_;
  const Tiles tiles_;
  const TileOps<T, Tile>& ops_ = TileOpsForCpu<T, Tile>();
  const TileSums<T>& sums_ops_ = TileSumsForCpu<T>();
  FactorView<T> factor_;
  MetricView<T> metric_;
  int slots_ = 1;
  Solution<Code> out_;
  // By tile.
  std::vector<int64_t> clipped_;
  std::vector<std::vector<Entry>> entries_;
  std::vector<double> sums_;  // [tiles, 2, cols]
  std::atomic<bool> no_memory_ = false;
};

// The rows from lane copies.first on, as many as have copies.copies lanes each.
template <typename T, typename Grid>
void TileSolver<T, Grid>::SolveBeams(const Tile& grid, const Spaces& spaces, LaneCopies copies,
                                     TileRows rows, int32_t* clipped) const {
  const Space &to = spaces.tile, &s = spaces.copies;
  SpreadLanes(to.weights, k_, kLanes<T>, copies, s.weights);
  if (s.kept != nullptr) SpreadLanes(to.kept, k_, kLanes<T>, copies, s.kept);
  const Tile spread = tiles_.Spread(grid, copies, s.grid);
  ops_.best(factor_, s.weights, spread, OutputOf(s, nullptr), options_.beam, slots_, s.parents,
            s.error);
  const int64_t count = std::min(kLanes<T> / slots_, rows.count - copies.first);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t best = r * slots_, lane = copies.first + r;
    int64_t from = best;
    for (int64_t p = 0; p < k_; ++p) {
      const int64_t at = p * kLanes<T> + from, put = factor_.order[p] * kLanes<T> + lane;
      to.codes[put] = s.codes[at];
      if (to.beside != nullptr) to.beside[put] = s.beside[at];
      to.error[p * kLanes<T> + lane] = s.error[p * kLanes<T> + best];
      clipped[lane] += (s.parents[at] & kWantedOutside) != 0;
      from = s.parents[at] & ~kWantedOutside;
    }
  }
  std::fill(to.error + k_ * kLanes<T>, to.error + RoundUpToBlock(k_) * kLanes<T>, T{0});
}

template <typename T, typename Grid>
void TileSolver<T, Grid>::Store(TileRows rows, const Space& s, const int32_t* clipped,
                                const double* losses, const double* reference) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = rows.first + i;
    Code* codes = out_.codes.data() + row * k_;
    for (int64_t c = 0; c < k_; ++c) {
      codes[c] = static_cast<Code>(tiles_.Stored(row, s.codes[c * kLanes<T> + i]));
    }
  }
  std::copy_n(losses, rows.count, out_.losses.begin() + rows.first);
  std::copy_n(reference, rows.count, out_.reference_losses.begin() + rows.first);
  clipped_[rows.first / kLanes<T>] = std::accumulate(clipped, clipped + rows.count, int64_t{0});
  if (keeps()) StoreEntries(rows, s);
  if (options_.column_sums) StoreSums(rows, s);
}

template <typename T, typename Grid>
void TileSolver<T, Grid>::StoreEntries(TileRows rows, const Space& s) {
  std::vector<Entry>& entries = entries_[rows.first / kLanes<T>];
  try {
    for (int64_t i = 0; i < rows.count; ++i) {
      for (int64_t c = 0; c < k_; ++c) {
        const T value = s.beside[c * kLanes<T> + i];
        if (value == 0) continue;
        entries.push_back(
            {rows.first + i, static_cast<uint16_t>(c), FloatToHalf(static_cast<float>(value))});
      }
    }
  } catch (const std::bad_alloc&) {
    no_memory_ = true;
  }
}

template <typename T, typename Grid>
void TileSolver<T, Grid>::StoreSums(TileRows rows, const Space& s) {
  double* wanted = sums_.data() + rows.first / kLanes<T> * 2 * k_;
  double* squares = wanted + k_;
  for (int64_t c = 0; c < k_; ++c) {
    for (int64_t i = 0; i < rows.count; ++i) {
      const double code = s.codes[c * kLanes<T> + i];
      wanted[c] += code * s.wanted[c * kLanes<T> + i];
      squares[c] += code * code;
    }
  }
}

// Tile by tile: the same sums for any number of threads.
template <typename T, typename Grid>
void TileSolver<T, Grid>::AddColumnSums() {
  out_.code_wanted.assign(k_, 0);
  out_.code_code.assign(k_, 0);
  for (size_t at = 0; at < sums_.size(); at += 2 * k_) {
    for (int64_t c = 0; c < k_; ++c) {
      out_.code_wanted[c] += sums_[at + c];
      out_.code_code[c] += sums_[at + k_ + c];
    }
  }
}

absl::Status CheckOptions(const SolveOptions& o, size_t weights, int64_t cols, bool factor,
                          bool metric) {
  const bool nearest = o.solver == Solver::kNearest;
  if (o.solver == Solver::kDense) return InvalidField("solver", "dense leaves nothing to solve");
  if (!factor && !nearest) return InvalidField("solver", "needs the inputs' second moment");
  if (o.beam < 1 || o.beam > kMaxBeam) {
    return InvalidField("beam", absl::StrCat("must be in 1..", kMaxBeam));
  }
  if (o.descent_passes < 0 || (o.descent_passes > 0 && !metric)) {
    return InvalidField("descent_passes", "must be 0, or positive with a factor made for descent");
  }
  if (o.kept != nullptr && o.kept->size() != weights) {
    return InvalidField("kept", "must have an entry for each weight");
  }
  if ((o.kept != nullptr || o.keep_overflow) && cols > 1 << 16) {
    return InvalidField("cols", "more than 65536 columns: sparse values can not be addressed");
  }
  if (o.column_sums && o.solver == Solver::kKBest) {
    return InvalidField("column_sums", "are those of one solution, not of several");
  }
  return absl::OkStatus();
}

}  // namespace

template <typename T, typename Grid>
absl::StatusOr<Solution<CodeOf<Grid>>> Solve(const SolveOptions& options, absl::Span<const float> w,
                                             const Grid& grid, const PackedFactor<T>* factor,
                                             ThreadPool& pool, const std::function<bool()>& stop) {
  const bool metric = factor != nullptr && factor->metric().values != nullptr;
  if (absl::Status s = CheckOptions(options, w.size(), grid.cols, factor != nullptr, metric);
      !s.ok()) {
    return s;
  }
  return TileSolver<T, Grid>(options, w, grid, factor).Run(pool, stop);
}

// fp32 is what jobs use; fp64 proves its identities.
#define BABAI_SOLVE(T, Grid)                                                             \
  template absl::StatusOr<Solution<CodeOf<Grid>>> Solve(                                 \
      const SolveOptions&, absl::Span<const float>, const Grid&, const PackedFactor<T>*, \
      ThreadPool&, const std::function<bool()>&);
BABAI_SOLVE(float, UniformGrid)
BABAI_SOLVE(float, UnboundedGrid)
BABAI_SOLVE(float, TableGrid)
BABAI_SOLVE(float, IntegerGrid)
BABAI_SOLVE(double, UniformGrid)
BABAI_SOLVE(double, UnboundedGrid)
BABAI_SOLVE(double, TableGrid)
BABAI_SOLVE(double, IntegerGrid)
#undef BABAI_SOLVE

}  // namespace babai
