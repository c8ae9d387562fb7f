// The sweep is GPTQ in reverse, its loss is what it says, and its bound holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cpu/isa.h"
#include "server/quant/certificate.h"
#include "server/quant/scale_fit.h"
#include "server/quant/solver.h"
#include "tests/quant/problem.h"
#include "tests/quant/textbook_gptq.h"

namespace babai {
namespace {

using testing_quant::MakeProblem;
using testing_quant::Problem;
using testing_quant::ProxyLoss;
using testing_quant::TextbookGptq;

double Sum(const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); }

UniformGrid Fit(const Problem& p, int bits, bool symmetric, int64_t group, ScaleFit fit,
                ThreadPool& pool) {
  return *FitScales(p.w, p.n, p.k, {bits, symmetric, group, fit, {}}, pool, nullptr);
}

template <typename T, typename Code>
Solution<Code> Sweep(const Problem& p, const UniformGrid& grid, const Factor& factor,
                     ThreadPool& pool) {
  const auto packed = PackedFactor<T>::Make(factor, pool);
  EXPECT_TRUE(packed.ok());
  using Grid = std::conditional_t<std::is_same_v<Code, uint8_t>, UniformGrid, UnboundedGrid>;
  auto solution = Solve<T>({Solver::kBabai}, p.w, Grid{grid}, &*packed, pool, nullptr);
  EXPECT_TRUE(solution.ok()) << solution.status();
  return *std::move(solution);
}

struct Shape {
  int64_t n, k, group;
};

class BabaiTest : public testing::TestWithParam<std::tuple<Shape, int, bool, Order>> {
 protected:
  ThreadPool pool_{2};
};

TEST_P(BabaiTest, GivesTheIntegersOfTextbookGptq) {
  const auto [shape, bits, symmetric, order] = GetParam();
  const Problem p = MakeProblem(shape.n, shape.k, 3 * shape.k, /*seed=*/bits * 100 + shape.k);
  const Factor factor = *FactorHessian(p.h, order, 0.01);
  ASSERT_EQ(factor.dead_columns, 0);
  // The searched scales clip some weights, so that the clipped and the unbounded sweep differ.
  const UniformGrid grid = Fit(p, bits, symmetric, shape.group, ScaleFit::kMse, pool_);
  const std::vector<int32_t> reversed(factor.order.rbegin(), factor.order.rend());

  const auto clipped = Sweep<double, uint8_t>(p, grid, factor, pool_);
  const auto want = TextbookGptq(p, grid, reversed, factor.damping, /*clip=*/true);
  EXPECT_TRUE(std::equal(want.begin(), want.end(), clipped.codes.begin()));

  const auto unbounded = Sweep<double, int32_t>(p, grid, factor, pool_);
  const auto want_unbounded = TextbookGptq(p, grid, reversed, factor.damping, /*clip=*/false);
  EXPECT_TRUE(std::equal(want_unbounded.begin(), want_unbounded.end(), unbounded.codes.begin()));
  EXPECT_EQ(unbounded.clipped, 0);
}

TEST_P(BabaiTest, ReportsTheLossOfItsResult) {
  const auto [shape, bits, symmetric, order] = GetParam();
  const Problem p = MakeProblem(shape.n, shape.k, 3 * shape.k, /*seed=*/bits * 200 + shape.k);
  const Factor factor = *FactorHessian(p.h, order, 0.01);
  const UniformGrid grid = Fit(p, bits, symmetric, shape.group, ScaleFit::kMse, pool_);

  const auto exact = Sweep<double, uint8_t>(p, grid, factor, pool_);
  const double want = ProxyLoss(p, grid, exact.codes, factor.damping);
  EXPECT_NEAR(Sum(exact.losses), want, 1e-10 * want);
  // q = 0: every code is the zero point.
  std::vector<int> zeros(p.n * p.k);
  for (int64_t i = 0; i < p.n * p.k; ++i) zeros[i] = testing_quant::ZeroOf(grid, i / p.k, i % p.k);
  const double reference = ProxyLoss(p, grid, zeros, factor.damping);
  EXPECT_NEAR(Sum(exact.reference_losses), reference, 1e-10 * reference);

  // In fp32 a sum of k terms is off by at most k eps relative to its terms, once in the sweep's
  // sums and once in their squares.
  const auto fast = Sweep<float, uint8_t>(p, grid, factor, pool_);
  const double fast_want = ProxyLoss(p, grid, fast.codes, factor.damping);
  const double eps = std::numeric_limits<float>::epsilon();
  EXPECT_NEAR(Sum(fast.losses), fast_want, 2 * shape.k * eps * reference);
}

INSTANTIATE_TEST_SUITE_P(
    Grids, BabaiTest,
    testing::Combine(testing::Values(Shape{37, 64, 32},  // a full tile of lanes and a part of one
                                     Shape{5, 128, 64},  // fewer rows than lanes
                                     Shape{17, 53,
                                           53}),  // one group a row, k no multiple of a block
                     testing::Values(2, 3, 4, 8), testing::Bool(),
                     testing::Values(Order::kNatural, Order::kActivation, Order::kMinPivot)));

TEST(BabaiBoundTest, IsNeverExceededWithoutClipping) {
  ThreadPool pool(2);
  double largest = 0, mean = 0;
  constexpr int kProblems = 150;
  for (int i = 0; i < kProblems; ++i) {
    const int64_t k = 8 + 7 * (i % 13);
    const Problem p = MakeProblem(16, k, 2 * k, /*seed=*/1000 + i);
    const Factor factor = *FactorHessian(p.h, static_cast<Order>(i % 3), i % 2 == 0 ? 0.01 : 1e-4);
    const UniformGrid grid =
        Fit(p, i % 4 == 3 ? 8 : 2 + i % 4, i % 5 == 0, k, ScaleFit::kMse, pool);
    const double bound = BabaiBound(grid, &factor);
    const double loss = Sum(Sweep<double, int32_t>(p, grid, factor, pool).losses);
    EXPECT_LE(loss, bound * (1 + 1e-12)) << "problem " << i;
    largest = std::max(largest, loss / bound);
    mean += loss / bound / kProblems;
  }
  // Rounding errors are close to uniform: a third of the worst case. Far less would mean that the
  // bound is computed too large to be of use.
  EXPECT_GT(mean, 0.25);
  EXPECT_LT(mean, 0.4);
  RecordProperty("largest", std::to_string(largest));
}

TEST(BabaiLossTest, BeatsNearestRoundingOnEveryProblem) {
  ThreadPool pool(1);
  for (int seed = 0; seed < 20; ++seed) {
    const Problem p = MakeProblem(16, 96, 300, seed);
    const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
    const UniformGrid grid = Fit(p, 4, false, 32, ScaleFit::kAbsMax, pool);
    const auto packed = PackedFactor<float>::Make(factor, pool);
    const auto nearest = Solve<float>({Solver::kNearest}, p.w, grid, &*packed, pool, nullptr);
    const auto babai = Solve<float>({Solver::kBabai}, p.w, grid, &*packed, pool, nullptr);
    EXPECT_LT(Sum(babai->losses), 0.7 * Sum(nearest->losses)) << "seed " << seed;
    EXPECT_NEAR(Sum(nearest->losses), ProxyLoss(p, grid, nearest->codes, factor.damping),
                1e-4 * Sum(nearest->losses));
  }
}

TEST(BabaiThreadsTest, ResultDoesNotDependOnThem) {
  const Problem p = MakeProblem(150, 96, 200, 5);
  ThreadPool one(1), two(2), three(3);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  const UniformGrid grid = Fit(p, 3, false, 32, ScaleFit::kMse, one);
  const auto want = Sweep<float, uint8_t>(p, grid, factor, one);
  for (ThreadPool* pool : {&two, &three}) {
    const UniformGrid same_grid = Fit(p, 3, false, 32, ScaleFit::kMse, *pool);
    EXPECT_EQ(same_grid.scales, grid.scales);
    EXPECT_EQ(same_grid.zeros, grid.zeros);
    const auto got = Sweep<float, uint8_t>(p, grid, factor, *pool);
    EXPECT_EQ(got.codes, want.codes);
    EXPECT_EQ(got.losses, want.losses);
    EXPECT_EQ(got.clipped, want.clipped);
  }
}

// Every instruction set's loops, not only those of this host's best.
TEST(BabaiIsaTest, AllGiveTheSameIntegers) {
  const Problem p = MakeProblem(50, 72, 200, 7);
  ThreadPool pool(1);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  const UniformGrid grid = Fit(p, 3, false, 72, ScaleFit::kMse, pool);
  const std::vector<int32_t> reversed(factor.order.rbegin(), factor.order.rend());
  const auto want = TextbookGptq(p, grid, reversed, factor.damping, /*clip=*/true);
  const cpu::Isa best = cpu::ActiveIsa();
  for (cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512Vnni}) {
    if (!cpu::SetIsa(isa)) continue;
    const auto exact = Sweep<double, uint8_t>(p, grid, factor, pool);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), exact.codes.begin())) << cpu::IsaName(isa);
    const auto fast = Sweep<float, uint8_t>(p, grid, factor, pool);
    const double loss = ProxyLoss(p, grid, fast.codes, factor.damping);
    EXPECT_NEAR(Sum(fast.losses), loss, 1e-4 * loss) << cpu::IsaName(isa);
    // The search picks among candidates of nearly equal error: fp32 rounding may choose another.
    const UniformGrid searched = Fit(p, 3, false, 72, ScaleFit::kMse, pool);
    int64_t different = 0;
    for (size_t i = 0; i < grid.scales.size(); ++i)
      different += searched.scales[i] != grid.scales[i];
    EXPECT_LE(different, 3) << cpu::IsaName(isa);
  }
  cpu::SetIsa(best);
}

// A row's result is its own: the same alone as among others.
TEST(BabaiThreadsTest, ResultDoesNotDependOnTheOtherRows) {
  const Problem all = MakeProblem(70, 64, 200, 6);
  ThreadPool pool(2);
  const Factor factor = *FactorHessian(all.h, Order::kActivation, 0.01);
  const auto want =
      Sweep<float, uint8_t>(all, Fit(all, 4, false, 32, ScaleFit::kMse, pool), factor, pool);
  for (int64_t row : {0, 33, 69}) {
    Problem alone = all;
    alone.n = 1;
    alone.w.assign(all.w.begin() + row * all.k, all.w.begin() + (row + 1) * all.k);
    const auto got =
        Sweep<float, uint8_t>(alone, Fit(alone, 4, false, 32, ScaleFit::kMse, pool), factor, pool);
    EXPECT_TRUE(std::equal(got.codes.begin(), got.codes.end(), want.codes.begin() + row * all.k));
  }
}

}  // namespace
}  // namespace babai
