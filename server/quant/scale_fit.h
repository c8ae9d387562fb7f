// Stage S4, fitting: the scale (and zero point) of every group, from the original weights.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/quant/grid.h"
#include "server/quant/recipe.h"

namespace babai {

struct ScaleFitOptions {
  int bits = 4;
  bool symmetric = false;
  int64_t group = 0;
  ScaleFit fit = ScaleFit::kAbsMax;
  // kLossWeighted: [cols], the cost of a unit of squared error in each column; empty weighs all
  // alike.
  absl::Span<const double> importance;
};

// Fits w [rows, cols]. The full range of a group is [min(w, 0), max(w, 0)] (asymmetric; the zero
// point is then the code of 0) or [-absmax, absmax] (symmetric; scale 2 absmax / (2^bits - 1), zero
// 2^(bits-1): GPTQ's convention, in which the largest positive weight is half a step beyond the
// grid). kAbsMax takes it; kMse and kLossWeighted search the fraction of it that gives the least
// squared error of rounding each weight alone. Scales are rounded to fp16 before anything is
// measured with them: what is stored is what is used. A group of zeros gets scale 1 and decodes to
// exact zeros.
//
// InvalidArgument NON_FINITE_WEIGHTS: w has a NaN or infinity. InvalidArgument UNSUPPORTED_FORMAT:
// a scale would exceed fp16. Cancelled, ResourceExhausted: see ForEachTile. Requires group to
// divide cols or to be >= cols.
absl::StatusOr<UniformGrid> FitScales(absl::Span<const float> w, int64_t rows, int64_t cols,
                                      const ScaleFitOptions& options, ThreadPool& pool,
                                      const std::function<bool()>& stop);

}  // namespace babai
