#include "server/quant/layer.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"
#include "server/quant/certificate.h"
#include "server/quant/rescale.h"
#include "server/quant/scale_fit.h"
#include "server/quant/solver.h"
#include "server/quant/step_fit.h"
#include "server/quant/swept_fit.h"
#include "server/quant/table_fit.h"
#include "server/quant/target.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status CheckShapes(const LinearProblem& p, const Recipe& recipe) {
  const auto& [w, n, k, factor, drift, residual, in, out] = p;
  int64_t count = 0;
  if (n < 1 || k < 1 || __builtin_mul_overflow(n, k, &count) ||
      count != static_cast<int64_t>(w.size())) {
    return InvalidField("weight", absl::StrCat("holds ", w.size(), " values, not ", n, " x ", k));
  }
  if (recipe.solver == Solver::kDense) {
    return InvalidField("recipe.solver", "dense keeps the weights: there is nothing to quantize");
  }
  if (recipe.needs_moments() && factor == nullptr) {
    return InvalidField("recipe.solver", "needs the inputs' second moment");
  }
  if (factor != nullptr && factor->k != k) {
    return InvalidField("weight",
                        absl::StrCat("has ", k, " inputs, its second moment ", factor->k));
  }
  if ((drift != nullptr && drift->k != k) ||
      (residual != nullptr && (residual->n != n || residual->k != k))) {
    return InvalidField("weight", "does not fit the moments of its inputs' drift");
  }
  if (k % in.block != 0 || n % out.block != 0) {
    return InvalidField("weight", absl::StrCat("can not be rotated: ", n, " x ", k));
  }
  return absl::OkStatus();
}

// w [n, k] with its rows turned by `out`: R_out w.
void RotateOutputs(const Rotation& out, int64_t n, int64_t k, std::vector<float>& w) {
  if (out.identity()) return;
  std::vector<float> columns(w.size());
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c) columns[c * n + r] = w[r * k + c];
  }
  Rotate(out, columns.data(), k, n);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c) w[r * k + c] = columns[c * n + r];
  }
}

// The 1s of the result are the `share` of weights with the largest w^2 E[x^2].
std::vector<uint8_t> MostSensitive(absl::Span<const float> w, int64_t k, const Factor& factor,
                                   double share) {
  std::vector<float> cost(w.size());
  for (size_t i = 0; i < w.size(); ++i)
    cost[i] = static_cast<float>(static_cast<double>(w[i]) * w[i] * factor.diag_h[i % k]);
  const auto count = static_cast<size_t>(share * static_cast<double>(w.size()));
  std::vector<uint8_t> kept(w.size(), 0);
  if (count == 0) return kept;
  std::vector<float> sorted = cost;
  std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<>());
  for (size_t i = 0; i < w.size(); ++i) kept[i] = cost[i] >= sorted[count - 1];
  return kept;
}

// The way of one linear through the stages; fields are made in order.
class Quantization {
 public:
  Quantization(const LinearProblem& problem, const Recipe& recipe, ThreadPool& pool,
               const std::function<bool()>& stop)
      : p_(problem), recipe_(recipe), pool_(pool), stop_(stop) {}

  absl::StatusOr<QuantizedLinear> operator()() {
    if (auto s = MakeTarget(); !s.ok()) return s;
    if (auto s = PackFactor(); !s.ok()) return s;
    if (recipe_.outlier_rule == OutlierRule::kSensitive)
      kept_ = MostSensitive(w_, p_.k, *p_.factor, recipe_.outliers);
    auto solved = SolveGrid();
    if (!solved.ok()) return solved;
    solved->packed.in = p_.in;
    solved->packed.out = p_.out;
    if (recipe_.rescale != Rescale::kNone) {
      if (auto s = RescaleCodes(*solved); !s.ok()) return s;
    }
    return Certified(*std::move(solved));
  }

 private:
  absl::Status MakeTarget();
  absl::Status PackFactor();
  absl::StatusOr<QuantizedLinear> SolveGrid();
  absl::StatusOr<QuantizedLinear> SolveUniform();
  absl::StatusOr<QuantizedLinear> SolveTable();
  absl::StatusOr<QuantizedLinear> SolveInteger();
  // How scales are fitted before any solver runs.
  ScaleFit AloneFit() const {
    return recipe_.scale_fit == ScaleFit::kSwept ? ScaleFit::kLossWeighted : recipe_.scale_fit;
  }
  // Then by the solver itself, a quick one, where the recipe says so.
  template <typename Grid>
  absl::Status Sweep(Grid& grid) const {
    if (recipe_.scale_fit != ScaleFit::kSwept) return absl::OkStatus();
    SolveOptions options = Options();
    if (options.solver == Solver::kKBest) options.solver = Solver::kBabai;
    options.descent_passes = 0;
    auto swept = SweepScales(options, w_, grid, factor(), pool_, stop_);
    if (!swept.ok()) return swept.status();
    grid = *std::move(swept);
    return absl::OkStatus();
  }
  absl::Status RescaleCodes(QuantizedLinear& linear) const;
  absl::StatusOr<QuantizedLinear> Certified(QuantizedLinear linear) const;

  const PackedFactor<float>* factor() const { return packed_ ? &*packed_ : nullptr; }
  SolveOptions Options() const {
    return {.solver = recipe_.solver,
            .beam = recipe_.beam,
            .descent_passes = recipe_.descent_passes,
            .keep_overflow = recipe_.outlier_rule == OutlierRule::kOverflow,
            .kept = kept_.empty() ? nullptr : &kept_};
  }

  const LinearProblem& p_;
  const Recipe& recipe_;
  ThreadPool& pool_;
  const std::function<bool()>& stop_;
  std::vector<float> changed_;  // rotated or corrected weights, if they are
  absl::Span<const float> w_;   // W*, in the stored basis
  double alpha_ = 0;
  std::optional<PackedFactor<float>> packed_;
  std::vector<double> costs_;  // of a unit of squared error in each column; empty: all alike
  std::vector<uint8_t> kept_;
};

absl::Status Quantization::MakeTarget() {
  w_ = p_.w;
  const bool corrects = recipe_.target != Target::kNone && p_.drift != nullptr;
  if (!corrects && p_.in.identity() && p_.out.identity()) return absl::OkStatus();
  changed_.assign(p_.w.begin(), p_.w.end());
  Rotate(p_.in, changed_.data(), p_.n, p_.k);
  if (corrects) {
    auto target = CorrectTarget(std::move(changed_), p_.n, *p_.factor, *p_.drift, p_.residual,
                                recipe_.target, recipe_.alpha);
    if (!target.ok()) return target.status();
    changed_ = std::move(target->w);
    alpha_ = target->alpha;
  }
  RotateOutputs(p_.out, p_.n, p_.k, changed_);
  w_ = changed_;
  return absl::OkStatus();
}

absl::Status Quantization::PackFactor() {
  if (p_.factor == nullptr) return absl::OkStatus();
  auto packed = PackedFactor<float>::Make(*p_.factor, pool_, recipe_.descent_passes > 0);
  if (!packed.ok()) return packed.status();
  packed_ = *std::move(packed);
  costs_ = SquaredPivots(p_.factor, p_.k);
  return absl::OkStatus();
}

absl::StatusOr<QuantizedLinear> Quantization::SolveGrid() {
  switch (recipe_.grid) {
    case GridKind::kUniform:
      return SolveUniform();
    case GridKind::kInteger:
    case GridKind::kColumnInteger:
      return SolveInteger();
    default:
      return SolveTable();
  }
}

template <typename Code>
void TakeSparse(Solution<Code>& solution, PackedLinear& packed) {
  if (!solution.sparse.columns.empty()) packed.sparse = std::move(solution.sparse);
}

absl::StatusOr<QuantizedLinear> Quantization::SolveUniform() {
  const auto group = GroupFor(recipe_, p_.k);
  if (!group.ok()) return group.status();
  ScaleFitOptions fit = {recipe_.bits, recipe_.symmetric, *group, AloneFit(), {}};
  if (fit.fit == ScaleFit::kLossWeighted) fit.importance = costs_;
  std::vector<float> inliers;
  if (!kept_.empty()) {
    inliers.assign(w_.begin(), w_.end());
    for (size_t i = 0; i < inliers.size(); ++i) inliers[i] = kept_[i] != 0 ? 0 : inliers[i];
  }
  auto grid = FitScales(kept_.empty() ? w_ : inliers, p_.n, p_.k, fit, pool_, stop_);
  if (!grid.ok()) return grid.status();
  Solution<uint8_t> solution;
  if (recipe_.outlier_rule == OutlierRule::kOverflow) {
    auto scaled =
        SearchOutlierScale(Options(), recipe_.outliers, w_, *grid, factor(), pool_, stop_);
    if (!scaled.ok()) return scaled.status();
    *grid = std::move(scaled->grid);
    solution = std::move(scaled->solution);
  } else {
    if (auto s = Sweep(*grid); !s.ok()) return s;
    auto solved = Solve<float>(Options(), w_, *grid, factor(), pool_, stop_);
    if (!solved.ok()) return solved.status();
    solution = *std::move(solved);
  }
  const absl::Span<const uint8_t> zeros =
      grid->symmetric ? absl::Span<const uint8_t>() : grid->zeros;
  auto packed = PackInt(solution.codes, grid->scales, zeros, p_.n, p_.k, grid->group, grid->bits);
  if (!packed.ok()) return packed.status();
  QuantizedLinear out{{.base = *std::move(packed)}, MakeCertificate(solution, *grid, p_.factor)};
  TakeSparse(solution, out.packed);
  return out;
}

absl::StatusOr<QuantizedLinear> Quantization::SolveTable() {
  const auto group = GroupFor(recipe_, p_.k);
  if (!group.ok()) return group.status();
  const TableFitOptions fit = {.kind = recipe_.grid,
                               .bits = recipe_.bits,
                               .group = *group,
                               .fit = AloneFit(),
                               .intermediate_bits = recipe_.intermediate_bits,
                               .importance = costs_,
                               .kept = kept_.empty() ? nullptr : &kept_};
  auto grid = FitTables(w_, p_.n, p_.k, fit, pool_, stop_);
  if (!grid.ok()) return grid.status();
  if (auto s = Sweep(*grid); !s.ok()) return s;
  auto solution = Solve<float>(Options(), w_, *grid, factor(), pool_, stop_);
  if (!solution.ok()) return solution.status();
  auto packed = PackTable(solution->codes, grid->scales, grid->table, p_.n, p_.k, grid->group,
                          grid->bits, grid->kind);
  if (!packed.ok()) return packed.status();
  QuantizedLinear out{{.base = *std::move(packed)}, MakeCertificate(*solution, *grid, p_.factor)};
  TakeSparse(*solution, out.packed);
  return out;
}

absl::StatusOr<QuantizedLinear> Quantization::SolveInteger() {
  const StepSearch search = {.solve = Options(),
                             .column_steps = recipe_.grid == GridKind::kColumnInteger,
                             .target_bits = recipe_.target_bits,
                             .rate_weight = recipe_.rate_weight};
  auto found = SearchStep(search, w_, p_.n, p_.k, p_.factor, factor(), pool_, stop_);
  if (!found.ok()) return found.status();
  std::vector<uint16_t> columns;
  for (const float value : found->grid.values) columns.push_back(FloatToHalf(value));
  const std::vector<uint16_t> rows(p_.n, FloatToHalf(1.0f));
  auto packed = EncodeEntropy(found->solution.codes, rows, columns, p_.n, p_.k);
  if (!packed.ok()) return packed.status();
  return QuantizedLinear{{.base = *std::move(packed)},
                         MakeCertificate(found->solution, found->grid, p_.factor)};
}

// ---- closed-form scales

absl::StatusOr<std::vector<float>> DecodeBase(const PackedLinear& packed) {
  std::vector<float> values(packed.rows() * packed.cols());
  const absl::Status done = DecodeRows(packed.view(), 0, packed.rows(), values.data());
  if (!done.ok()) return done;
  return values;
}

void ScaleHalf(float factor, uint16_t& half) { half = FloatToHalf(HalfToFloat(half) * factor); }

// `per_row` values of each row times the row's factor.
void ScaleRows(absl::Span<const float> factors, std::vector<uint16_t>& halves) {
  const size_t per_row = halves.size() / factors.size();
  for (size_t i = 0; i < halves.size(); ++i) ScaleHalf(factors[i / per_row], halves[i]);
}

void ScaleRows(absl::Span<const float> factors, PackedLinear& packed) {
  if (auto* ints = std::get_if<PackedInt>(&packed.base)) ScaleRows(factors, ints->scales);
  if (auto* coded = std::get_if<EntropyCoded>(&packed.base)) ScaleRows(factors, coded->row_scales);
  if (auto* table = std::get_if<PackedTable>(&packed.base))
    ScaleRows(factors, table->kind == TableKind::kShared ? table->scales : table->table);
  if (!packed.sparse) return;
  for (int64_t r = 0; r < packed.sparse->rows; ++r) {
    for (uint32_t i = packed.sparse->row_begin[r]; i < packed.sparse->row_begin[r + 1]; ++i)
      ScaleHalf(factors[r], packed.sparse->values[i]);
  }
}

void ScaleColumns(absl::Span<const float> factors, PackedLinear& packed) {
  auto* coded = std::get_if<EntropyCoded>(&packed.base);
  std::vector<uint16_t>& scales = coded != nullptr ? coded->col_scales : packed.col_scales;
  if (scales.empty()) scales.assign(factors.size(), FloatToHalf(1.0f));
  for (size_t c = 0; c < factors.size(); ++c) ScaleHalf(factors[c], scales[c]);
}

absl::Status Quantization::RescaleCodes(QuantizedLinear& linear) const {
  const bool rows = recipe_.rescale != Rescale::kColumns;
  const bool columns = recipe_.rescale != Rescale::kRows;
  const auto before = DecodeBase(linear.packed);
  if (!before.ok()) return before.status();
  const auto h = DampedHessian(*p_.factor);
  if (!h.ok()) return h.status();
  const auto fit = FitRescaling(w_, *before, *h, p_.n, p_.k, rows, columns, pool_);
  if (!fit.ok()) return fit.status();
  PackedLinear better = linear.packed;
  if (rows) ScaleRows(fit->rows, better);
  if (columns) ScaleColumns(fit->columns, better);
  const auto after = DecodeBase(better);
  if (!after.ok()) return after.status();
  const auto losses = RowLosses(w_, *after, *h, p_.n, p_.k);
  if (!losses.ok()) return losses.status();
  double loss = 0;
  for (const double l : *losses) loss += l;
  // Stored scales are rounded to fp16: at high rates that may cost more than the fit gains.
  if (!(loss < linear.certificate.proxy_loss)) return absl::OkStatus();
  linear.packed = std::move(better);
  linear.certificate.proxy_loss = loss;
  return absl::OkStatus();
}

absl::StatusOr<QuantizedLinear> Quantization::Certified(QuantizedLinear linear) const {
  Certificate& c = linear.certificate;
  if (!std::isfinite(c.proxy_loss)) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kHessianNotPositiveDefinite, "",
                  "the calibration inputs of a layer are too small or too large for fp32");
  }
  const double weights = static_cast<double>(p_.n) * static_cast<double>(p_.k);
  c.relative_error = c.reference_loss > 0 ? std::sqrt(c.proxy_loss / c.reference_loss) : 0;
  c.bits_per_weight = 8 * static_cast<double>(linear.packed.bytes()) / weights;
  c.alpha = alpha_;
  if (linear.packed.sparse)
    c.outliers = static_cast<double>(linear.packed.sparse->columns.size()) / weights;
  return linear;
}

}  // namespace

absl::StatusOr<QuantizedLinear> QuantizeLinear(const LinearProblem& problem, const Recipe& recipe,
                                               ThreadPool& pool,
                                               const std::function<bool()>& stop) {
  if (absl::Status s = ValidateRecipe(recipe); !s.ok()) return s;
  if (absl::Status s = CheckShapes(problem, recipe); !s.ok()) return s;
  try {
    return Quantization(problem, recipe, pool, stop)();
  } catch (const std::bad_alloc&) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory to quantize a layer");
  }
}

}  // namespace babai
