#include "server/quant/solver.h"

#include <algorithm>
#include <numeric>

#include "kernels/formats/float16.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The scratch of one tile, carved out of one allocation.
template <typename T, typename Code>
struct Workspace {
  static constexpr int64_t kWidth = kLanes<T>;

  static int64_t Bytes(int64_t k, int64_t groups) {
    return static_cast<int64_t>(sizeof(T)) * kWidth * (k + RoundUpToBlock(k) + 2 * groups) +
           static_cast<int64_t>(sizeof(Code)) * kWidth * k;
  }
  Workspace(uint8_t* memory, int64_t k, int64_t groups)
      : weights(reinterpret_cast<T*>(memory)),
        error(weights + k * kWidth),
        scales(error + RoundUpToBlock(k) * kWidth),
        zeros(scales + groups * kWidth),
        codes(reinterpret_cast<Code*>(zeros + groups * kWidth)) {}

  T* weights;   // [k, lanes] original order
  T* error;     // [padded k, lanes] sweep order
  T* scales;    // [groups, lanes]
  T* zeros;     // [groups, lanes]
  Code* codes;  // [k, lanes] original order
};

template <typename T>
void LoadGrid(const UniformGrid& grid, TileRows rows, T* scales, T* zeros) {
  const int64_t groups = grid.groups();
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      const int64_t at = (rows.first + i) * groups + g;
      scales[g * kLanes<T> + i] = i < rows.count ? T{HalfToFloat(grid.scales[at])} : T{1};
      zeros[g * kLanes<T> + i] = i < rows.count ? static_cast<T>(grid.zeros[at]) : T{0};
    }
  }
}

template <typename Code>
void StoreCodes(const Code* tile, int64_t lanes, TileRows rows, int64_t k,
                std::vector<Code>& codes) {
  for (int64_t i = 0; i < rows.count; ++i) {
    Code* row = codes.data() + (rows.first + i) * k;
    for (int64_t c = 0; c < k; ++c) row[c] = tile[c * lanes + i];
  }
}

// losses of x [k, lanes], given in original order; `sweep` is a buffer of padded k columns.
template <typename T, typename Ops>
void NormsOf(const Ops& ops, const FactorView<T>* factor, const T* x, int64_t k, T* sweep,
             double* losses) {
  if (factor != nullptr) {
    for (int64_t p = 0; p < RoundUpToBlock(k); ++p) {
      const T* from = p < k ? x + factor->order[p] * kLanes<T> : nullptr;
      for (int64_t i = 0; i < kLanes<T>; ++i)
        sweep[p * kLanes<T> + i] = from != nullptr ? from[i] : T{0};
    }
    ops.norms(*factor, sweep, losses);
    return;
  }
  std::fill_n(losses, kLanes<T>, 0.0);
  for (int64_t c = 0; c < k; ++c) {
    for (int64_t i = 0; i < kLanes<T>; ++i)
      losses[i] += static_cast<double>(x[c * kLanes<T> + i]) * x[c * kLanes<T> + i];
  }
}

}  // namespace

template <typename T>
absl::StatusOr<PackedFactor<T>> PackedFactor<T>::Make(const Factor& factor, ThreadPool& pool) {
  const int64_t k = factor.k, padded = RoundUpToBlock(k), blocks = padded / kFactorBlock;
  PackedFactor packed;
  packed.factor_ = &factor;
  packed.columns_ = TileBuffer<T>(FactorBlockOffset(blocks, padded));
  if (packed.columns_.data() == nullptr) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory for the factor");
  }
  pool.ParallelFor(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kFactorBlock, width = std::min(kFactorBlock, k - first);
      T* out = packed.columns_.data() + FactorBlockOffset(b, padded);
      for (int64_t row = first; row < k; ++row) {
        const double* in = factor.l.data() + row * k + first;
        for (int64_t c = 0; c < width; ++c)
          out[(row - first) * kFactorBlock + c] = static_cast<T>(in[c]);
      }
    }
  });
  for (int64_t p = 0; p < k; ++p) {
    packed.diag_.push_back(static_cast<T>(factor.l[p * k + p]));
    packed.inverse_diag_.push_back(static_cast<T>(1 / factor.l[p * k + p]));
  }
  return packed;
}

template <typename T>
FactorView<T> PackedFactor<T>::view() const {
  return {columns_.data(), diag_.data(), inverse_diag_.data(), factor_->order.data(), factor_->k};
}

template <typename T, typename Code>
absl::StatusOr<Solution<Code>> Solve(Solver solver, absl::Span<const float> w,
                                     const UniformGrid& grid, const PackedFactor<T>* factor,
                                     ThreadPool& pool, const std::function<bool()>& stop) {
  using Tile = UniformTile<T, Code>;
  using Space = Workspace<T, Code>;
  const TileOps<T, Tile>& ops = TileOpsForCpu<T, Tile>();
  const int64_t rows = grid.rows, k = grid.cols, groups = grid.groups();
  const FactorView<T> view = factor != nullptr ? factor->view() : FactorView<T>{};
  const FactorView<T>* metric = factor != nullptr ? &view : nullptr;
  Solution<Code> out;
  out.codes.resize(rows * k);
  out.losses.resize(rows);
  out.reference_losses.resize(rows);
  std::atomic<int64_t> clipped_total = 0;
  const auto work = [&](TileRows part, uint8_t* scratch) {
    Space space(scratch, k, groups);
    int32_t clipped[kLanes<T>] = {};
    double losses[kLanes<T>], reference[kLanes<T>];
    LoadTile(w.data(), k, part, kLanes<T>, space.weights);
    LoadGrid(grid, part, space.scales, space.zeros);
    NormsOf(ops, metric, space.weights, k, space.error, reference);
    const Tile tile = {space.scales, space.zeros, grid.group, static_cast<T>(grid.max_code()),
                       space.codes,  clipped};
    if (solver == Solver::kBabai) {
      ops.babai(view, space.weights, tile, space.error, losses);
    } else {
      ops.nearest(k, space.weights, tile, space.weights);
      NormsOf(ops, metric, space.weights, k, space.error, losses);
    }
    StoreCodes(space.codes, kLanes<T>, part, k, out.codes);
    std::copy_n(losses, part.count, out.losses.begin() + part.first);
    std::copy_n(reference, part.count, out.reference_losses.begin() + part.first);
    clipped_total += std::accumulate(clipped, clipped + part.count, int64_t{0});
  };
  const absl::Status done = ForEachTile(rows, kLanes<T>, Space::Bytes(k, groups), pool, stop, work);
  if (!done.ok()) return done;
  out.clipped = clipped_total;
  return out;
}

template class PackedFactor<float>;
template class PackedFactor<double>;
// fp32 clipped is what jobs use; fp64 proves its identities; unbounded integers carry the bound.
template absl::StatusOr<Solution<uint8_t>> Solve<float, uint8_t>(Solver, absl::Span<const float>,
                                                                 const UniformGrid&,
                                                                 const PackedFactor<float>*,
                                                                 ThreadPool&,
                                                                 const std::function<bool()>&);
template absl::StatusOr<Solution<int32_t>> Solve<float, int32_t>(Solver, absl::Span<const float>,
                                                                 const UniformGrid&,
                                                                 const PackedFactor<float>*,
                                                                 ThreadPool&,
                                                                 const std::function<bool()>&);
template absl::StatusOr<Solution<uint8_t>> Solve<double, uint8_t>(Solver, absl::Span<const float>,
                                                                  const UniformGrid&,
                                                                  const PackedFactor<double>*,
                                                                  ThreadPool&,
                                                                  const std::function<bool()>&);
template absl::StatusOr<Solution<int32_t>> Solve<double, int32_t>(Solver, absl::Span<const float>,
                                                                  const UniformGrid&,
                                                                  const PackedFactor<double>*,
                                                                  ThreadPool&,
                                                                  const std::function<bool()>&);

}  // namespace babai
