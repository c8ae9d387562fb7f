// Searches meet their targets, and what they choose is what the theory says is better.
#include "server/quant/step_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "server/quant/certificate.h"
#include "server/quant/root_search.h"
#include "server/quant/scale_fit.h"
#include "server/quant/table_fit.h"
#include "server/reason/reason.h"
#include "tests/quant/problem.h"

namespace babai {
namespace {

using testing_quant::Decoded;
using testing_quant::LossOf;
using testing_quant::MakeProblem;
using testing_quant::PivotsOf;
using testing_quant::Problem;

double Sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

struct Case {
  Case(int64_t n, int64_t k, uint64_t seed)
      : p(MakeProblem(n, k, 3 * k, seed)),
        factor(*FactorHessian(p.h, Order::kNatural, 0.01)),
        packed(*PackedFactor<float>::Make(factor, pool, true)) {}

  SteppedSolution Search(const StepSearch& options) {
    auto found = SearchStep(options, p.w, p.n, p.k, &factor, &packed, pool, nullptr);
    EXPECT_TRUE(found.ok()) << found.status();
    return *std::move(found);
  }

  Problem p;
  Factor factor;
  ThreadPool pool{2};
  PackedFactor<float> packed;
};

TEST(RootSearchTest, FindsTheRootOfFallingFunctions) {
  const auto evaluations = [](const auto& f, double start, double slope) {
    RootSearch search(start, slope);
    int n = 0;
    for (; n < 60 && std::abs(f(search.x())) > 1e-6; ++n) search.Add(f(search.x()));
    return n;
  };
  EXPECT_LE(evaluations([](double x) { return 3 - x; }, 0, -1), 3);
  EXPECT_LE(evaluations([](double x) { return std::exp2(-x) - 1e-3; }, 0, -1), 40);
  EXPECT_LE(evaluations([](double x) { return 2 - std::tanh(x) * 3; }, -3, -1), 40);
  EXPECT_LE(evaluations([](double x) { return x < 1.3 ? 5.0 : 1.3 - x; }, 0, -1), 40);
}

TEST(StepsTest, ColumnStepsAreInverseToThePivots) {
  Case c(4, 40, 1);
  const std::vector<float> steps = ColumnSteps(c.factor, 0.1);
  const std::vector<double> pivots = PivotsOf(c.factor);
  for (int64_t i = 0; i < c.p.k; ++i)
    EXPECT_NEAR(steps[i] * std::sqrt(pivots[i]), 0.1, 0.1 * 0x1p-10) << i;
  for (float s : EqualSteps(5, 0.1)) EXPECT_EQ(s, HalfToFloat(FloatToHalf(0.1f)));
  // Whatever the factor, a step is a positive fp16.
  for (double scale : {1e-30, 1e30}) {
    for (float s : ColumnSteps(c.factor, scale)) {
      EXPECT_GT(s, 0);
      EXPECT_EQ(HalfToFloat(FloatToHalf(s)), s);
    }
  }
}

TEST(SearchStepTest, MeetsTheTargetInCodedBytes) {
  Case c(600, 96, 2);
  for (double bits : {1.5, 2.5, 4.0}) {
    for (bool column : {false, true}) {
      for (const SolveOptions& solve :
           {SolveOptions{}, SolveOptions{Solver::kNearest}, SolveOptions{Solver::kKBest, 4, 1}}) {
        for (double rate_weight : {0.0, 1.0}) {
          const SteppedSolution s = c.Search({.solve = solve,
                                              .column_steps = column,
                                              .target_bits = bits,
                                              .rate_weight = rate_weight});
          EXPECT_NEAR(s.bits, bits, 0.003)
              << "beam " << solve.beam << " columns " << column << " rate weight " << rate_weight;
          std::vector<uint16_t> columns;
          for (float v : s.grid.values) columns.push_back(FloatToHalf(v));
          const auto coded =
              EncodeEntropy(s.solution.codes, std::vector<uint16_t>(c.p.n, FloatToHalf(1)), columns,
                            c.p.n, c.p.k);
          ASSERT_TRUE(coded.ok()) << coded.status();
          EXPECT_NEAR(8.0 * static_cast<double>(coded->bytes()) / (600 * 96), s.bits, 0.02);
          const double loss = LossOf(c.p, Decoded(s.grid, s.solution), c.factor.damping);
          EXPECT_NEAR(Sum(s.solution.losses), loss, 1e-3 * loss);
        }
      }
    }
  }
}

// WaterSIC's point: the arithmetic mean of L_pp^2 becomes the geometric one.
TEST(SearchStepTest, ColumnStepsGainTheRateGap) {
  Case c(1600, 96, 3);
  const double equal =
      Sum(c.Search({.column_steps = false, .target_bits = 6, .shrink = false}).solution.losses);
  const double by_column =
      Sum(c.Search({.column_steps = true, .target_bits = 6, .shrink = false}).solution.losses);
  // A high-rate law: at six bits hardly any column is so quiet that its integers are all 0.
  EXPECT_NEAR(0.5 * std::log2(equal / by_column), RateGapBits(c.factor), 0.1);
}

TEST(SearchStepTest, ShrinkingAndRatesEachLowerTheLoss) {
  Case c(600, 96, 4);
  for (bool column : {false, true}) {
    StepSearch options = {.column_steps = column, .target_bits = 1.6, .shrink = false};
    const double plain = Sum(c.Search(options).solution.losses);
    options.shrink = true;
    const double shrunk = Sum(c.Search(options).solution.losses);
    EXPECT_LT(shrunk, plain);
    options.rate_weight = 1;
    EXPECT_LT(Sum(c.Search(options).solution.losses), shrunk);
  }
}

TEST(SearchStepTest, RefusesTargetsThatNoStepMeets) {
  Case c(16, 32, 5);
  for (double bits : {0.0, -1.0, 0.5, 17.0, std::nan("")}) {
    const auto found =
        SearchStep({.target_bits = bits}, c.p.w, 16, 32, &c.factor, &c.packed, c.pool, nullptr);
    EXPECT_EQ(ReasonOf(found.status()), reason::kInvalidField) << bits;
  }
}

TEST(SearchStepTest, ZerosAreNoTrouble) {
  Case c(16, 32, 6);
  std::fill(c.p.w.begin(), c.p.w.end(), 0.0f);
  const SteppedSolution s = c.Search({.column_steps = true, .target_bits = 4});
  EXPECT_EQ(Sum(s.solution.losses), 0);
}

// ---- outliers

TEST(OutlierScaleTest, MeetsTheDensityAndKeepsTheBound) {
  Case c(700, 128, 7);
  const UniformGrid uniform =
      *FitScales(c.p.w, c.p.n, c.p.k, {3, false, 64, ScaleFit::kMse, {}}, c.pool, nullptr);
  const TableGrid odd = *FitTables(
      c.p.w, c.p.n, c.p.k, {.kind = GridKind::kOdd, .bits = 3, .group = 64}, c.pool, nullptr);
  const auto check = [&](const auto& grid) {
    double before = 0;
    for (double density : {0.01, 0.02, 0.05}) {
      for (int beam : {1, 4}) {
        const auto found = SearchOutlierScale({beam > 1 ? Solver::kKBest : Solver::kBabai, beam},
                                              density, c.p.w, grid, &c.packed, c.pool, nullptr);
        ASSERT_TRUE(found.ok()) << found.status();
        EXPECT_NEAR(found->density, density, 0.01 * density);
        const Certificate certificate = MakeCertificate(found->solution, found->grid, &c.factor);
        EXPECT_EQ(certificate.outliers, found->density);
        EXPECT_EQ(certificate.clip_rate, 0);
        const double loss = LossOf(c.p, Decoded(found->grid, found->solution), c.factor.damping);
        EXPECT_NEAR(certificate.proxy_loss, loss, 1e-3 * loss);
        if (beam > 1) continue;
        EXPECT_LE(loss, certificate.babai_bound);
        if (before > 0) {
          EXPECT_LT(loss, before) << "more values beside the grid, less loss";
        }
        before = loss;
      }
    }
  };
  check(uniform);
  check(odd);
}

}  // namespace
}  // namespace babai
