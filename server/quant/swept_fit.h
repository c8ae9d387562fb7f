// Stage S4, the last step of fitting: scales by the loss that the sweep really leaves.
//
// The fits of scale_fit.h and table_fit.h round each weight alone, but what a sweep rounds is a
// weight plus what earlier columns ask of it, and how much that clips only the sweep itself tells.
// So it is run with a few common factors on a row's scales, and each row keeps the factor that lost
// least.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/grid.h"
#include "server/quant/solver.h"

namespace babai {

// Every scale (or a row's table) times `factor`, rounded to fp16 and kept positive and finite.
UniformGrid ScaledBy(double factor, UniformGrid grid);
TableGrid ScaledBy(double factor, TableGrid grid);

// `grid` (a UniformGrid or a TableGrid) with each row's scales times the best factor for the row.
// Solves once for each factor. Errors: see Solve.
template <typename Grid>
absl::StatusOr<Grid> SweepScales(const SolveOptions& options, absl::Span<const float> w,
                                 const Grid& grid, const PackedFactor<float>* packed,
                                 ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
