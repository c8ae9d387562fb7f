#include "server/quant/layer.h"

#include <cmath>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/quant/certificate.h"
#include "server/quant/scale_fit.h"
#include "server/quant/solver.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status CheckShapes(absl::Span<const float> w, int64_t n, int64_t k, const Factor* factor,
                         const Recipe& recipe) {
  int64_t count = 0;
  if (n < 1 || k < 1 || __builtin_mul_overflow(n, k, &count) ||
      count != static_cast<int64_t>(w.size())) {
    return InvalidField("weight", absl::StrCat("holds ", w.size(), " values, not ", n, " x ", k));
  }
  if (recipe.solver == Solver::kDense) {
    return InvalidField("recipe.solver", "dense keeps the weights: there is nothing to quantize");
  }
  if (recipe.solver == Solver::kBabai && factor == nullptr) {
    return InvalidField("recipe.solver", "babai needs the inputs' second moment");
  }
  if (factor != nullptr && factor->k != k) {
    return InvalidField("weight",
                        absl::StrCat("has ", k, " inputs, its second moment ", factor->k));
  }
  return absl::OkStatus();
}

// What a unit of squared error in each column costs if every other error stays: L_pp^2, the part of
// the column's activity that no column quantized after it can make up for.
std::vector<double> ColumnCosts(const Factor* factor) {
  std::vector<double> costs(factor != nullptr ? factor->k : 0);
  for (int64_t p = 0; p < static_cast<int64_t>(costs.size()); ++p) {
    const double l = factor->l[p * factor->k + p];
    costs[factor->order[p]] = l * l;
  }
  return costs;
}

absl::StatusOr<UniformGrid> FitGrid(absl::Span<const float> w, int64_t n, int64_t k,
                                    const Factor* factor, const Recipe& recipe, ThreadPool& pool,
                                    const std::function<bool()>& stop) {
  const absl::StatusOr<int64_t> group = GroupFor(recipe, k);
  if (!group.ok()) return group.status();
  const std::vector<double> costs = ColumnCosts(factor);
  ScaleFitOptions options = {recipe.bits, recipe.symmetric, *group, recipe.scale_fit, {}};
  if (recipe.scale_fit == ScaleFit::kLossWeighted) options.importance = costs;
  return FitScales(w, n, k, options, pool, stop);
}

absl::StatusOr<Solution<uint8_t>> SolveGrid(absl::Span<const float> w, const UniformGrid& grid,
                                            const Factor* factor, Solver solver, ThreadPool& pool,
                                            const std::function<bool()>& stop) {
  if (factor == nullptr) return Solve<float, uint8_t>(solver, w, grid, nullptr, pool, stop);
  const absl::StatusOr<PackedFactor<float>> packed = PackedFactor<float>::Make(*factor, pool);
  if (!packed.ok()) return packed.status();
  return Solve<float, uint8_t>(solver, w, grid, &*packed, pool, stop);
}

absl::StatusOr<QuantizedLinear> Quantize(absl::Span<const float> w, int64_t n, int64_t k,
                                         const Factor* factor, const Recipe& recipe,
                                         ThreadPool& pool, const std::function<bool()>& stop) {
  const absl::StatusOr<UniformGrid> grid = FitGrid(w, n, k, factor, recipe, pool, stop);
  if (!grid.ok()) return grid.status();
  const auto solution = SolveGrid(w, *grid, factor, recipe.solver, pool, stop);
  if (!solution.ok()) return solution.status();
  const absl::Span<const uint8_t> zeros =
      grid->symmetric ? absl::Span<const uint8_t>() : grid->zeros;
  absl::StatusOr<PackedInt> packed =
      PackInt(solution->codes, grid->scales, zeros, n, k, grid->group, grid->bits);
  if (!packed.ok()) return packed.status();
  const Certificate certificate = MakeCertificate(*solution, *grid, factor, *packed);
  if (!std::isfinite(certificate.proxy_loss)) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kHessianNotPositiveDefinite, "",
                  "the calibration inputs of a layer are too small or too large for fp32");
  }
  return QuantizedLinear{*std::move(packed), certificate};
}

}  // namespace

absl::StatusOr<QuantizedLinear> QuantizeLinear(absl::Span<const float> w, int64_t n, int64_t k,
                                               const Factor* factor, const Recipe& recipe,
                                               ThreadPool& pool,
                                               const std::function<bool()>& stop) {
  if (absl::Status s = ValidateRecipe(recipe); !s.ok()) return s;
  if (absl::Status s = CheckShapes(w, n, k, factor, recipe); !s.ok()) return s;
  try {
    return Quantize(w, n, k, factor, recipe, pool, stop);
  } catch (const std::bad_alloc&) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory to quantize a layer");
  }
}

}  // namespace babai
