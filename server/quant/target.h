// Stage S2: the weights that a solver is asked for. The quantized layer sees inputs y, not the
// original model's x. Of W (x - y) the part that a linear map of y can express is W D H^-1 y, D =
// E[(x - y) y']; taking up a share alpha of it, W* = W + alpha W D H^-1, makes up for what earlier
// layers lost. Taking all of it overfits small calibration sets; the closed form is the R^2 of that
// regression. Source: CoreQ, arXiv:2602.05902; with the residual stream's drift E[(r - r~) y'] H^-1
// added: WaterSIC, arXiv:2603.04956.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/quant/factor.h"
#include "server/quant/moments.h"
#include "server/quant/recipe.h"

namespace babai {

struct CorrectedTarget {
  std::vector<float> w;  // [n, k]
  double alpha = 0;      // share taken up
};

// W* for w [n, k]. All moments are in the basis of w's columns; `residual` may be null, or has n
// rows in the basis of w's rows. `alpha` is that of Target::kFixed. Requires matching sizes.
absl::StatusOr<CorrectedTarget> CorrectTarget(std::vector<float> w, int64_t n, const Factor& factor,
                                              const Drift& drift, const ResidualDrift* residual,
                                              Target rule, double alpha);

}  // namespace babai
