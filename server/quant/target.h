// Stage S2: the weights that a solver is asked for. The quantized layer sees inputs y, not the
// original model's x. Of W (x - y) the part that a linear map of y can express is W D H^-1 y, D =
// E[(x - y) y']; taking up a share alpha of it, W* = W + alpha W D H^-1, makes up for what earlier
// layers lost. Source: CoreQ, arXiv:2602.05902; with the residual stream's drift E[(r - r~) y']
// H^-1 added: WaterSIC, arXiv:2603.04956.
//
// Taking all of it overfits small calibration sets. Target::kClosedForm takes the R^2 of that
// regression (CoreQ). Target::kCrossValidated takes what shrinks the correction C = J H^-1 to the
// least expected loss on other tokens: J is the true J0 plus noise, that alpha is <C, J0> / <C, J>,
// and for J1, J2 of either half of the tokens <J1 H^-1, J2> tells <J0 H^-1, J0> without bias, for
// their noise is independent.
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
