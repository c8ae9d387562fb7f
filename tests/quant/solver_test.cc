// Solvers over every grid: their losses are those of what they store, K-best finds better points
// than Babai, descent never climbs, and the bound holds where it is claimed.
#include "server/quant/solver.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/cpu/isa.h"
#include "server/quant/certificate.h"
#include "server/quant/scale_fit.h"
#include "server/quant/step_fit.h"
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
using testing_quant::ValueOf;

double Sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

// A problem with a factor and grids of all kinds.
struct Case {
  Case(int64_t n, int64_t k, uint64_t seed, Order order = Order::kActivation)
      : p(MakeProblem(n, k, 3 * k, seed)), factor(*FactorHessian(p.h, order, 0.01)) {}

  UniformGrid Uniform(int bits, int64_t group) {
    return *FitScales(p.w, p.n, p.k, {bits, false, group, ScaleFit::kMse, {}}, pool, nullptr);
  }
  TableGrid Table(GridKind kind, int bits, int64_t group) {
    const auto grid = FitTables(p.w, p.n, p.k,
                                {.kind = kind,
                                 .bits = bits,
                                 .group = group,
                                 .intermediate_bits = 4,
                                 .importance = PivotsOf(factor)},
                                pool, nullptr);
    EXPECT_TRUE(grid.ok()) << grid.status();
    return *grid;
  }
  IntegerGrid Integers(double c) {
    const std::vector<float> steps = ColumnSteps(factor, c);
    return {p.n, p.k, steps, steps};
  }
  template <typename T, typename Grid>
  Solution<CodeOf<Grid>> Run(const SolveOptions& options, const Grid& grid) {
    const auto packed = *PackedFactor<T>::Make(factor, pool, options.descent_passes > 0);
    auto solution = Solve<T>(options, p.w, grid, &packed, pool, nullptr);
    EXPECT_TRUE(solution.ok()) << solution.status();
    return *std::move(solution);
  }
  template <typename Grid>
  double Loss(const Grid& grid, const Solution<CodeOf<Grid>>& s) {
    return LossOf(p, Decoded(grid, s), factor.damping);
  }

  Problem p;
  Factor factor;
  ThreadPool pool{2};
};

std::vector<SolveOptions> AllSolvers() {
  return {{Solver::kNearest},     {Solver::kBabai},       {Solver::kKBest, 3},
          {Solver::kKBest, 16},   {Solver::kBabai, 1, 2}, {Solver::kNearest, 1, 3},
          {Solver::kKBest, 4, 2}, {.keep_overflow = true}};
}

// fp64 gives the identity to the last digits; fp32 within the rounding of sums of k terms.
template <typename Grid>
void ExpectLossesOfWhatIsStored(Case& c, SolveOptions options, const Grid& grid) {
  std::vector<uint8_t> kept(c.p.n * c.p.k);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = i % 37 == 5;
  for (const std::vector<uint8_t>* keep :
       {(const std::vector<uint8_t>*)nullptr, &std::as_const(kept)}) {
    options.kept = keep;
    const auto exact = c.Run<double>(options, grid);
    const double want = c.Loss(grid, exact);
    EXPECT_NEAR(Sum(exact.losses), want, 1e-9 * want);
    const auto fast = c.Run<float>(options, grid);
    EXPECT_NEAR(Sum(fast.losses), c.Loss(grid, fast),
                4 * c.p.k * 0x1p-23 * Sum(fast.reference_losses));
    EXPECT_TRUE(MakeSparseRowsView(exact.sparse.row_begin, exact.sparse.columns,
                                   exact.sparse.values, c.p.n, c.p.k)
                    .ok());
    if (keep == nullptr && !options.keep_overflow) {
      EXPECT_EQ(exact.sparse.columns.size(), 0);
    }
  }
}

TEST(SolverLossTest, IsThatOfWhatIsStored) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{37, 64}, {5, 53}}) {
    Case c(n, k, 3 + n);
    for (const SolveOptions& options : AllSolvers()) {
      SCOPED_TRACE(testing::Message() << "solver " << static_cast<int>(options.solver) << " beam "
                                      << options.beam << " passes " << options.descent_passes
                                      << " overflow " << options.keep_overflow << " k " << k);
      ExpectLossesOfWhatIsStored(c, options, c.Uniform(3, k));
      ExpectLossesOfWhatIsStored(c, options, c.Table(GridKind::kOdd, 2, k));
      ExpectLossesOfWhatIsStored(c, options, c.Table(GridKind::kFloat4, 4, k));
      ExpectLossesOfWhatIsStored(c, options, c.Table(GridKind::kKMeans, 3, k));
      ExpectLossesOfWhatIsStored(c, options, c.Table(GridKind::kBinaryCoding, 3, k));
      ExpectLossesOfWhatIsStored(c, options, c.Integers(0.05));
    }
  }
}

// A kept weight is stored to the precision of fp16's 11 bits and passes on no more error than that.
TEST(SolverKeepTest, KeptWeightsAreExact) {
  Case c(6, 40, 5);
  std::vector<uint8_t> kept(c.p.n * c.p.k, 1);
  const UniformGrid grid = c.Uniform(2, 40);
  for (Solver solver : {Solver::kNearest, Solver::kBabai, Solver::kKBest}) {
    const auto s = c.Run<double>({.solver = solver, .beam = 4, .kept = &kept}, grid);
    const std::vector<double> q = Decoded(grid, s);
    // A sweep makes later columns up for what little rounding to fp16 there is.
    for (size_t i = 0; i < q.size() && solver == Solver::kNearest; ++i) {
      const double rest = q[i] - ValueOf(grid, i / c.p.k, i % c.p.k, s.codes[i]);
      EXPECT_NEAR(q[i], c.p.w[i], 0.01 * std::abs(rest) + 0x1p-24);
    }
    EXPECT_LT(Sum(s.losses), 1e-5 * Sum(s.reference_losses));
    EXPECT_EQ(s.clipped, 0);
  }
}

// ---- K-best

TEST(KBestTest, OneSolutionIsBabais) {
  for (uint64_t seed : {1, 2, 3}) {
    Case c(35, 72, seed);
    const auto equal = [&](const auto& grid) {
      const auto one = c.Run<float>({Solver::kKBest, 1}, grid);
      const auto babai = c.Run<float>({Solver::kBabai}, grid);
      EXPECT_EQ(one.codes, babai.codes);
      EXPECT_EQ(one.clipped, babai.clipped);
    };
    equal(c.Uniform(3, 72));
    equal(UnboundedGrid{c.Uniform(3, 72)});
    equal(c.Table(GridKind::kKMeans, 3, 72));
    equal(c.Integers(0.1));
  }
}

// The least loss of a row over all codes of a small grid.
double BruteForce(const Case& c, const UniformGrid& grid, int64_t row) {
  const int64_t k = c.p.k;
  const int levels = 1 << grid.bits;
  int64_t all = 1;
  for (int64_t i = 0; i < k; ++i) all *= levels;
  double best = HUGE_VAL;
  std::vector<double> e(k);
  for (int64_t n = 0; n < all; ++n) {
    int64_t rest = n;
    double loss = 0;
    for (int64_t i = 0; i < k; ++i, rest /= levels) {
      e[i] = c.p.w[row * k + i] - ValueOf(grid, row, i, static_cast<double>(rest % levels));
      for (int64_t j = 0; j < i; ++j) loss += 2 * e[i] * c.p.h[i * k + j] * e[j];
      loss += e[i] * (c.p.h[i * k + i] + c.factor.damping) * e[i];
    }
    best = std::min(best, loss);
  }
  return best;
}

// With four levels a wide beam sees nearly everything there is.
TEST(KBestTest, NearlyReachesTheOptimumOfTinyProblems) {
  double babai_total = 0, best_total = 0, optimum_total = 0;
  int optimal = 0, rows = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Case c(8, 6, 100 + seed);
    const UniformGrid grid = c.Uniform(2, 6);
    const auto babai = c.Run<double>({Solver::kBabai}, grid);
    const auto best = c.Run<double>({Solver::kKBest, 16}, grid);
    for (int64_t r = 0; r < c.p.n; ++r) {
      const double optimum = BruteForce(c, grid, r);
      EXPECT_GE(best.losses[r], optimum * (1 - 1e-9));
      optimal += best.losses[r] <= optimum * (1 + 1e-9);
      ++rows;
      babai_total += babai.losses[r];
      best_total += best.losses[r];
      optimum_total += optimum;
    }
  }
  EXPECT_GT(optimal, 0.9 * rows);
  EXPECT_LT(best_total, 1.01 * optimum_total);
  EXPECT_LT(best_total, babai_total);
}

TEST(KBestTest, WiderBeamsLoseLessOnAverage) {
  std::vector<double> totals(5, 0.0);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Case c(16, 96, 200 + seed);
    const UniformGrid grid = c.Uniform(3, 32);
    for (int i = 0; i < 5; ++i) {
      const auto s = c.Run<float>({Solver::kKBest, 1 << i}, grid);
      totals[i] += Sum(s.losses) / Sum(s.reference_losses);
    }
  }
  for (int i = 1; i < 5; ++i) EXPECT_LT(totals[i], totals[i - 1]) << "beam " << (1 << i);
}

TEST(KBestTest, OddWidthsAndRowCountsWork) {
  for (int64_t n : {1, 7, 33}) {
    Case c(n, 50, 300 + n);
    const TableGrid grid = c.Table(GridKind::kPowerOfTwo, 3, 50);
    for (int beam : {3, 5, 6, 12}) {
      const auto s = c.Run<double>({Solver::kKBest, beam}, grid);
      const double want = c.Loss(grid, s);
      EXPECT_NEAR(Sum(s.losses), want, 1e-9 * want);
    }
  }
}

// ---- descent

TEST(DescentTest, NeverIncreasesTheLossAndEndsWhereNoSingleMoveHelps) {
  Case c(20, 64, 400);
  const auto check = [&](const auto& grid, int largest) {
    for (Solver solver : {Solver::kNearest, Solver::kBabai, Solver::kKBest}) {
      double before = HUGE_VAL;
      for (int passes : {0, 1, 2, 8}) {
        const auto s = c.Run<double>({solver, solver == Solver::kKBest ? 4 : 1, passes}, grid);
        for (int64_t r = 0; r < c.p.n && passes > 0; ++r) EXPECT_GE(s.losses[r], 0);
        const double loss = c.Loss(grid, s);
        EXPECT_LE(loss, before * (1 + 1e-12));
        before = loss;
      }
      auto s = c.Run<double>({solver, solver == Solver::kKBest ? 4 : 1, 60}, grid);
      const double loss = c.Loss(grid, s);
      for (int64_t at = 0; at < c.p.n * c.p.k; at += 11) {
        for (int move : {-1, 1}) {
          const int code = static_cast<int>(s.codes[at]) + move;
          if (code < 0 || code > largest) continue;
          auto moved = s;
          moved.codes[at] = static_cast<decltype(moved.codes[at] + 0)>(code);
          EXPECT_GE(c.Loss(grid, moved), loss * (1 - 1e-9));
        }
      }
    }
  };
  check(c.Uniform(2, 32), 3);
  check(c.Table(GridKind::kNormalFloat, 3, 64), 7);
}

TEST(DescentTest, HelpsInSinglePrecisionToo) {
  Case c(33, 100, 401);
  for (int bits : {2, 4}) {
    const UniformGrid grid = c.Uniform(bits, 100);
    const auto babai = c.Run<float>({Solver::kBabai}, grid);
    const auto better = c.Run<float>({Solver::kBabai, 1, 3}, grid);
    EXPECT_LT(Sum(better.losses), Sum(babai.losses));
    for (int64_t r = 0; r < c.p.n; ++r)
      EXPECT_LE(better.losses[r], babai.losses[r] * (1 + 1e-5)) << "row " << r;
  }
}

TEST(DescentTest, LeavesKeptWeightsAlone) {
  Case c(9, 48, 402);
  std::vector<uint8_t> kept(c.p.n * c.p.k);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = i % 5 == 0;
  const UniformGrid grid = c.Uniform(2, 48);
  const auto before = c.Run<double>({.solver = Solver::kBabai, .kept = &kept}, grid);
  const auto after =
      c.Run<double>({.solver = Solver::kBabai, .descent_passes = 4, .kept = &kept}, grid);
  EXPECT_EQ(before.sparse.values, after.sparse.values);
  EXPECT_EQ(before.sparse.columns, after.sparse.columns);
  EXPECT_NE(before.codes, after.codes);
  for (size_t i = 0; i < kept.size(); ++i) {
    if (kept[i] != 0) {
      EXPECT_EQ(before.codes[i], after.codes[i]);
    }
  }
}

// ---- bounds

TEST(BoundTest, HoldsForEveryGridThatClipsNothing) {
  double least = HUGE_VAL, largest = 0;
  for (int seed = 0; seed < 40; ++seed) {
    Case c(16, 24 + seed, 500 + seed, static_cast<Order>(seed % 3));
    const auto check = [&](const auto& grid) {
      const auto s = c.Run<double>({.keep_overflow = true}, grid);
      const Certificate certificate = MakeCertificate(s, grid, &c.factor);
      EXPECT_EQ(certificate.clip_rate, 0);
      EXPECT_LE(certificate.proxy_loss, certificate.babai_bound * (1 + 1e-9)) << "seed " << seed;
      EXPECT_EQ(certificate.outliers,
                static_cast<double>(s.sparse.columns.size()) / static_cast<double>(c.p.w.size()));
      least = std::min(least, certificate.proxy_loss / certificate.babai_bound);
      largest = std::max(largest, certificate.proxy_loss / certificate.babai_bound);
    };
    check(c.Uniform(2 + seed % 3, c.p.k));
    check(c.Table(GridKind::kOdd, 3, c.p.k));
    check(c.Table(GridKind::kKMeans, 2, c.p.k));
    check(c.Table(GridKind::kBinaryCoding, 3, c.p.k));
    check(c.Integers(0.03));
  }
  // Far below a third everywhere would mean that the bound is of no use. (Clusters of outliers have
  // wide gaps, which only their few members use.)
  EXPECT_GT(largest, 0.2);
  EXPECT_GT(least, 0.005);
}

// ---- rates

TEST(RateTest, BitsAreBoughtWithLossAtTheAskedPrice) {
  Case c(96, 96, 600);
  IntegerGrid grid = c.Integers(0.2);
  const auto plain = c.Run<float>({}, grid);
  const EntropyModel model = FitEntropyModel(plain.codes, c.p.n, c.p.k);
  const auto bits = [&](const std::vector<int32_t>& z) {
    double sum = 0;
    for (int64_t r = 0; r < c.p.n; ++r) {
      for (int64_t k = 0; k < c.p.k; ++k) sum += model.Bits(model.Context(r, k), z[r * c.p.k + k]);
    }
    return sum;
  };
  grid.model = &model;
  double fewer = 0;
  for (double weight : {0.002, 0.01}) {
    grid.rate_weight = weight;
    for (const SolveOptions& options :
         {SolveOptions{}, SolveOptions{Solver::kKBest, 8}, SolveOptions{Solver::kBabai, 1, 2}}) {
      const auto s = c.Run<float>(options, grid);
      // What a column saves in bits may cost others some: only looking ahead or back always pays.
      const double saved = bits(plain.codes) - bits(s.codes);
      if (options.beam > 1 || options.descent_passes > 0) {
        EXPECT_LT(Sum(s.losses), Sum(plain.losses) + weight * saved);
      } else {
        EXPECT_GT(saved, fewer);
        fewer = saved;
      }
    }
  }
}

// ---- the rest

TEST(SolverThreadsTest, ResultDoesNotDependOnThem) {
  Case c(150, 64, 700);
  const TableGrid grid = c.Table(GridKind::kKMeans, 3, 64);
  const auto packed = *PackedFactor<float>::Make(c.factor, c.pool, true);
  const SolveOptions options = {
      .solver = Solver::kKBest, .beam = 5, .descent_passes = 1, .keep_overflow = true};
  ThreadPool one(1), three(3);
  const auto want = *Solve<float>(options, c.p.w, grid, &packed, one, nullptr);
  const auto got = *Solve<float>(options, c.p.w, grid, &packed, three, nullptr);
  EXPECT_EQ(got.codes, want.codes);
  EXPECT_EQ(got.losses, want.losses);
  EXPECT_EQ(got.sparse.columns, want.sparse.columns);
  EXPECT_EQ(got.sparse.values, want.sparse.values);
}

TEST(SolverIsaTest, EveryInstructionSetFindsAsGoodASolution) {
  Case c(40, 80, 701);
  const TableGrid table = c.Table(GridKind::kNormalFloat, 3, 80);
  const IntegerGrid integers = c.Integers(0.1);
  const SolveOptions options = {Solver::kKBest, 8, 1};
  const double want_table = Sum(c.Run<double>(options, table).losses);
  const double want_integers = Sum(c.Run<double>(options, integers).losses);
  const cpu::Isa best = cpu::ActiveIsa();
  for (cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512Vnni}) {
    if (!cpu::SetIsa(isa)) continue;
    // Another order of sums changes a tie here and there.
    EXPECT_NEAR(Sum(c.Run<float>(options, table).losses), want_table, 0.01 * want_table);
    EXPECT_NEAR(Sum(c.Run<float>(options, integers).losses), want_integers, 0.01 * want_integers);
  }
  cpu::SetIsa(best);
}

TEST(SolverOptionsTest, RefusesWhatMakesNoSense) {
  Case c(4, 16, 800);
  const UniformGrid grid = c.Uniform(3, 16);
  const auto packed = *PackedFactor<float>::Make(c.factor, c.pool);
  const std::vector<uint8_t> few(3);
  for (const SolveOptions& bad :
       {SolveOptions{Solver::kDense}, SolveOptions{Solver::kKBest, 0},
        SolveOptions{Solver::kKBest, 17}, SolveOptions{Solver::kBabai, 1, -1},
        SolveOptions{Solver::kBabai, 1, 1}, SolveOptions{.kept = &few},
        SolveOptions{.solver = Solver::kKBest, .beam = 2, .column_sums = true}}) {
    const auto s = Solve<float>(bad, c.p.w, grid, &packed, c.pool, nullptr);
    EXPECT_EQ(ReasonOf(s.status()), reason::kInvalidField) << s.status();
  }
  const auto without = Solve<float>({Solver::kBabai}, c.p.w, grid,
                                    (const PackedFactor<float>*)nullptr, c.pool, nullptr);
  EXPECT_EQ(ReasonOf(without.status()), reason::kInvalidField);
  const auto stopped = Solve<float>({}, c.p.w, grid, &packed, c.pool, [] { return true; });
  EXPECT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace babai
