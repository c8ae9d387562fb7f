#include "server/quant/step_fit.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/formats/entropy_coded.h"
#include "kernels/formats/float16.h"
#include "server/quant/root_search.h"
#include "server/quant/row_sample.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr double kBitsTolerance = 0.003;
// The loss at which a bit more pays, in units of the squared step: a step half as large saves 3/4
// of 1/12, and at the margin d(c^2 / 12) = 2 ln 2 c^2 / 12 a bit.
constexpr double kMarginalLoss = 2 * 0.69314718055994531 / 12;

float StoredStep(double step) {
  const float bounded = static_cast<float>(std::clamp(step, 0x1p-24, 65504.0));
  return HalfToFloat(FloatToHalf(bounded));
}

// Solutions for one step after the other. What one learns about shrinking and coding serves the
// next.
class StepSolver {
 public:
  StepSolver(const StepSearch& options, int64_t cols, const Factor* factor,
             const PackedFactor<float>* packed, ThreadPool& pool, const std::function<bool()>& stop)
      : options_(options),
        cols_(cols),
        factor_(factor),
        packed_(packed),
        pool_(pool),
        stop_(stop),
        pivots_(SquaredPivots(factor, cols)),
        shrink_(cols, 1.0) {}

  // log2 c at which Gaussian weights of the columns' own variances would cost target_bits.
  double FirstGuess(const Rows& rows) const;
  // Learns only if told so: while it does, the same step may give another solution.
  absl::StatusOr<SteppedSolution> Evaluate(double log2_c, const Rows& rows, SolveOptions solve,
                                           bool learn);

 private:
  IntegerGrid GridFor(double log2_c, const Rows& rows) const;
  void LearnShrinking(const SteppedSolution& s);
  double Bits(const EntropyModel& model, const Solution<int32_t>& solution, const Rows& rows) const;

  const StepSearch& options_;
  const int64_t cols_;
  const Factor* factor_;
  const PackedFactor<float>* packed_;
  ThreadPool& pool_;
  const std::function<bool()>& stop_;
  const std::vector<double> pivots_;
  std::vector<double> shrink_;  // value / step
  EntropyModel model_;          // what coding costs; of the rows of the last solution
};

double StepSolver::FirstGuess(const Rows& rows) const {
  double sum = 0;
  for (int64_t c = 0; c < cols_; ++c) {
    double square = 0;
    for (int64_t r = 0; r < rows.count; ++r) {
      square += double{rows.w[r * cols_ + c]} * rows.w[r * cols_ + c];
    }
    const double power = square / static_cast<double>(rows.count);
    const double loss = options_.column_steps ? power * pivots_[c] : power;
    sum += 0.5 * std::log2(std::max(loss, 1e-40));
  }
  constexpr double kGaussian = 2.0470956;  // 1/2 log2(2 pi e)
  return sum / static_cast<double>(cols_) + kGaussian - options_.target_bits;
}

IntegerGrid StepSolver::GridFor(double log2_c, const Rows& rows) const {
  const double c = std::exp2(log2_c);
  IntegerGrid grid = {rows.count, cols_,
                      options_.column_steps ? ColumnSteps(*factor_, c) : EqualSteps(cols_, c)};
  double loss = 0;  // mean over columns of a squared step's
  for (int64_t col = 0; col < cols_; ++col) {
    const double step = grid.steps[col];
    grid.values.push_back(StoredStep(step * shrink_[col]));
    loss += step * step * pivots_[col] / static_cast<double>(cols_);
  }
  grid.rate_weight = options_.rate_weight * kMarginalLoss * loss;
  return grid;
}

void StepSolver::LearnShrinking(const SteppedSolution& s) {
  for (int64_t c = 0; c < cols_; ++c) {
    if (!(s.solution.code_code[c] > 0)) continue;
    const double value = s.solution.code_wanted[c] / s.solution.code_code[c];
    shrink_[c] = std::clamp(value / s.grid.steps[c], 0.5, 1.0);
  }
}

double StepSolver::Bits(const EntropyModel& model, const Solution<int32_t>& solution,
                        const Rows& rows) const {
  const int64_t sparse = solution.sparse.columns.empty() ? 0 : solution.sparse.bytes();
  const int64_t bytes = EntropyCodedBytes(model, solution.codes, rows.count, cols_) + sparse;
  return 8 * static_cast<double>(bytes) / static_cast<double>(rows.count * cols_);
}

absl::StatusOr<SteppedSolution> StepSolver::Evaluate(double log2_c, const Rows& rows,
                                                     SolveOptions solve, bool learn) {
  solve.kept = rows.kept;
  solve.column_sums = options_.shrink && learn && solve.solver != Solver::kKBest;
  SteppedSolution out = {GridFor(log2_c, rows)};
  const double rate_weight = out.grid.rate_weight;
  // A model knows its rows: without one for these, a solution that ignores the rate makes it.
  const bool informed = static_cast<int64_t>(model_.row_class.size()) == rows.count;
  for (int round = rate_weight > 0 && !informed ? 0 : 1; round < 2; ++round) {
    out.grid.model = round == 1 && rate_weight > 0 ? &model_ : nullptr;
    auto solution = Solve<float>(solve, rows.w, out.grid, packed_, pool_, stop_);
    if (!solution.ok()) return solution.status();
    out.solution = *std::move(solution);
    EntropyModel model = FitEntropyModel(out.solution.codes, rows.count, cols_);
    if (round == 1) out.bits = Bits(model, out.solution, rows);
    if (round == 0 || learn) model_ = std::move(model);
  }
  out.grid.model = nullptr;
  out.grid.rate_weight = 0;
  if (solve.column_sums) LearnShrinking(out);
  return out;
}

// How often a search may solve, and in how many of these solutions it learns: after that, bits are
// a function of the step.
struct Effort {
  int evaluations, learning;
};

// The solution nearest to the target; x becomes its place.
absl::StatusOr<SteppedSolution> SearchRows(StepSolver& solver, const Rows& rows,
                                           const SolveOptions& solve, double target, Effort effort,
                                           double& x) {
  constexpr double kHighRateSlope = -1;  // half the step costs one bit
  RootSearch search(x, kHighRateSlope);
  SteppedSolution best;
  for (int i = 0; i < effort.evaluations; ++i) {
    const bool learn = i < effort.learning;
    if (i == effort.learning) search = RootSearch(search.x(), kHighRateSlope);
    const double at = search.x();
    auto solution = solver.Evaluate(at, rows, solve, learn);
    if (!solution.ok()) return solution.status();
    const double off = solution->bits - target;
    search.Add(off);
    if (i > 0 && !(std::abs(off) < std::abs(best.bits - target))) continue;
    best = *std::move(solution);
    x = at;
    if (std::abs(off) <= kBitsTolerance && i > 0) break;
  }
  return best;
}

absl::Status CheckTarget(double bits, int64_t rows, int64_t cols) {
  const double scales = 16.0 * static_cast<double>(rows + cols) / static_cast<double>(rows * cols);
  if (bits > scales && bits <= 16) return absl::OkStatus();
  return InvalidField("recipe.target_bits",
                      absl::StrCat("must be above ", scales, ", which the scales of a ", rows,
                                   " x ", cols, " matrix take, and at most 16"));
}

}  // namespace

std::vector<float> EqualSteps(int64_t cols, double c) {
  return std::vector<float>(cols, StoredStep(c));
}

std::vector<float> ColumnSteps(const Factor& factor, double c) {
  std::vector<float> steps(factor.k);
  for (int64_t p = 0; p < factor.k; ++p) {
    steps[factor.order[p]] = StoredStep(c / factor.l[p * factor.k + p]);
  }
  return steps;
}

absl::StatusOr<SteppedSolution> SearchStep(const StepSearch& options, absl::Span<const float> w,
                                           int64_t rows, int64_t cols, const Factor* factor,
                                           const PackedFactor<float>* packed, ThreadPool& pool,
                                           const std::function<bool()>& stop) {
  if (absl::Status s = CheckTarget(options.target_bits, rows, cols); !s.ok()) return s;
  if (options.column_steps && factor == nullptr) {
    return InvalidField("column_steps", "need the inputs' second moment");
  }
  const Rows all = {w, rows, options.solve.kept};
  const RowSample sample(all, cols);
  StepSolver solver(options, cols, factor, packed, pool, stop);
  SolveOptions quick = options.solve;
  if (quick.solver == Solver::kKBest) quick.solver = Solver::kBabai;
  quick.descent_passes = 0;
  const bool slow = quick.solver != options.solve.solver || options.solve.descent_passes > 0;
  double x = solver.FirstGuess(sample.rows());
  if (sample.rows().count < rows) {
    const auto found = SearchRows(solver, sample.rows(), quick, options.target_bits, {4, 3}, x);
    if (!found.ok()) return found;
  }
  auto found = SearchRows(solver, all, quick, options.target_bits, {12, 3}, x);
  if (!found.ok() || !slow) return found;
  return SearchRows(solver, all, options.solve, options.target_bits, {10, 1}, x);
}

}  // namespace babai
