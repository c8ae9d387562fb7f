// Stages S4 and S6 for grids whose parameters are found by solving with them: integer steps that
// meet a coded size, and scales that leave a wanted share of the weights outside the grid.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/grid.h"
#include "server/quant/layer.h"
#include "server/quant/solver.h"

namespace babai {

// Steps in original column order, each one an fp16 value: c for all columns (HPTQ,
// arXiv:2507.18553), or c / L_pp, with which every column adds the same to the loss (WaterSIC,
// arXiv:2603.04956).
std::vector<float> EqualSteps(int64_t cols, double c);
std::vector<float> ColumnSteps(const Factor& factor, double c);

struct StepSearch {
  SolveOptions solve;
  bool column_steps = false;  // c / L_pp; else c
  // Everything stored for the matrix over its weights: codes, model, scales, sparse values.
  double target_bits = 0;
  // Shrink each column's value to the least-squares fit of what the sweep wanted: less loss at the
  // same codes, at low rates above all.
  bool shrink = true;
  // What a coded bit may cost, in units of the loss at which a high-rate quantizer's next bit pays:
  // 2 ln 2 / 12 c^2. 0 rounds to nearest, 1 is the theory's optimum.
  double rate_weight = 0;
};

struct SteppedSolution {
  IntegerGrid grid;  // its model is null: the search's own is gone
  Solution<int32_t> solution;
  double bits = 0;  // as target_bits, achieved
};

// Finds c so that `bits` is within 0.003 of the target (a small matrix may not have such a c: the
// closest found). `factor` and `packed` are null only for kNearest with equal steps.
// InvalidArgument: the target is below what an empty matrix costs or above 16 bits.
absl::StatusOr<SteppedSolution> SearchStep(const StepSearch& options, absl::Span<const float> w,
                                           int64_t rows, int64_t cols, const Factor* factor,
                                           const PackedFactor<float>* packed, ThreadPool& pool,
                                           const std::function<bool()>& stop);

template <typename Grid>
struct ScaledSolution {
  Grid grid;
  Solution<CodeOf<Grid>> solution;
  double factor = 1;   // of the grid's scales to those given
  double density = 0;  // share of the weights beside the grid
};

// Multiplies all scales of `grid` (a UniformGrid or a TableGrid) by one factor such that, solved
// with keep_overflow, a share `density` of the weights lies beside the grid: within 1 % of it
// (SSQR, arXiv:2507.18553). Where no factor does that, the nearest found: too few weights, or a
// grid so coarse that its rounding errors push weights outside however large it becomes. Requires
// 0 < density <= 0.25.
template <typename Grid>
absl::StatusOr<ScaledSolution<Grid>> SearchOutlierScale(SolveOptions options, double density,
                                                        absl::Span<const float> w, const Grid& grid,
                                                        const PackedFactor<float>* packed,
                                                        ThreadPool& pool,
                                                        const std::function<bool()>& stop);

}  // namespace babai
