// Moments, orders, damping and degenerate inputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "server/quant/layer.h"
#include "server/quant/order.h"
#include "server/reason/reason.h"
#include "tests/quant/problem.h"

namespace babai {
namespace {

using testing_quant::MakeProblem;
using testing_quant::Problem;

// Sums of t products in fp32 are off by at most t eps times the sum of magnitudes, which the
// diagonal bounds (Cauchy-Schwarz).
void ExpectMoment(const std::vector<double>& got, const std::vector<double>& want, int64_t k,
                  int64_t tokens) {
  const double eps = std::numeric_limits<float>::epsilon() * std::min<int64_t>(tokens, 1024);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      EXPECT_NEAR(got[i * k + j], want[i * k + j],
                  eps * std::sqrt(want[i * k + i] * want[j * k + j]));
      EXPECT_EQ(got[i * k + j], got[j * k + i]);
    }
  }
}

class MomentsTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
};

TEST_F(MomentsTest, AveragesOuterProducts) {
  for (int64_t k : {1, 40, 450}) {  // 450: more than one block of columns
    const Problem p = MakeProblem(1, k, 60, k);
    Moments m(k, pool_);
    ASSERT_TRUE(m.Add(p.x.data(), 25).ok());
    ASSERT_TRUE(m.Add(p.x.data() + 25 * k, 35).ok());
    EXPECT_EQ(m.tokens(), 60);
    EXPECT_EQ(m.k(), k);
    ExpectMoment(m.Hessian(), p.h, k, 60);
  }
}

TEST_F(MomentsTest, SplitsLongInputs) {
  const Problem p = MakeProblem(1, 24, 5000, 3);
  Moments m(24, pool_);
  ASSERT_TRUE(m.Add(p.x.data(), 5000).ok());
  ExpectMoment(m.Hessian(), p.h, 24, 5000);
}

TEST_F(MomentsTest, OfNothingAreZero) {
  EXPECT_EQ(Moments(3, pool_).Hessian(), std::vector<double>(9, 0.0));
}

TEST_F(MomentsTest, RefusesWhatIsNotFinite) {
  for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF, 1e30f}) {
    Problem p = MakeProblem(1, 16, 20, 4);
    Moments m(16, pool_);
    p.x[157] = bad;
    const absl::Status s = m.Add(p.x.data(), 20);
    EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(s), reason::kCalibrationNonFinite);
  }
}

// Halves are of all tokens, in whatever portions they come.
TEST_F(MomentsTest, DriftIsTheMeanOfEitherHalf) {
  constexpr int64_t kInputs = 8, kTokens = 50, kFirst = 25;
  const Problem y = MakeProblem(1, kInputs, kTokens, 5), x = MakeProblem(1, kInputs, kTokens, 6);
  DriftMoments moments(kInputs, 0, kFirst, false, pool_);
  for (const auto& [begin, end] : {std::pair{0, 10}, {10, 40}, {40, 50}}) {
    const int64_t at = begin * kInputs;
    ASSERT_TRUE(moments.Add(y.x.data() + at, x.x.data() + at, nullptr, nullptr, end - begin).ok());
  }
  const Drift drift = moments.drift();
  EXPECT_EQ(drift.tokens, kTokens);
  EXPECT_EQ(drift.cross.first_share, 0.5);
  EXPECT_TRUE(drift.gram.empty());
  for (const auto& [begin, half] :
       {std::pair{int64_t{0}, &drift.cross.first}, std::pair{kFirst, &drift.cross.second}}) {
    for (int64_t i = 0; i < kInputs * kInputs; ++i) {
      double want = 0, magnitude = 0;
      for (int64_t t = begin; t < begin + kFirst; ++t) {
        const int64_t a = t * kInputs + i / kInputs, b = t * kInputs + i % kInputs;
        want += (double{x.x[a]} - y.x[a]) * y.x[b] / kFirst;
        magnitude += std::abs((double{x.x[a]} - y.x[a]) * y.x[b]) / kFirst;
      }
      EXPECT_NEAR((*half)[i], want, kTokens * 0x1p-23 * magnitude);
    }
  }
}

// L L' must be the damped moment in sweep order, to the accuracy of a fp64 factorization.
void ExpectFactors(const Factor& f, const std::vector<double>& h) {
  const int64_t k = f.k;
  const double largest = *std::max_element(f.diag_h.begin(), f.diag_h.end()) + f.damping;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0;
      for (int64_t m = 0; m <= std::min(i, j); ++m) sum += f.l[i * k + m] * f.l[j * k + m];
      const double want = h[f.order[i] * k + f.order[j]] + (i == j ? f.damping : 0);
      ASSERT_NEAR(sum, want, 1e-14 * k * largest) << i << ", " << j;
      if (j > i) {
        ASSERT_EQ(f.l[i * k + j], 0.0);
      }
    }
  }
}

TEST(FactorTest, FactorsTheDampedMomentInEveryOrder) {
  for (int64_t k : {1, 7, 64, 200}) {
    const Problem p = MakeProblem(1, k, 2 * k + 5, k);
    for (Order order : {Order::kNatural, Order::kActivation, Order::kMinPivot}) {
      const auto f = FactorHessian(p.h, order, 0.01);
      ASSERT_TRUE(f.ok()) << f.status();
      double trace = 0;
      for (int64_t i = 0; i < k; ++i) trace += p.h[i * k + i];
      EXPECT_DOUBLE_EQ(f->damping, 0.01 * trace / k);
      EXPECT_EQ(f->damping_doublings, 0);
      ExpectFactors(*f, p.h);
    }
  }
}

TEST(OrderTest, ActivationQuantizesTheMostActiveColumnFirst) {
  const Problem p = MakeProblem(1, 30, 100, 1);
  const Factor f = *FactorHessian(p.h, Order::kActivation, 0.01);
  for (int64_t i = 1; i < 30; ++i) EXPECT_LE(f.diag_h[f.order[i - 1]], f.diag_h[f.order[i]]);
  const Factor natural = *FactorHessian(p.h, Order::kNatural, 0.01);
  for (int64_t i = 0; i < 30; ++i) EXPECT_EQ(natural.order[i], i);
}

// Algorithm 3 of arXiv:2507.18553, literally: smallest diagonal, eliminate, repeat.
std::vector<int32_t> NaiveMinPivot(std::vector<double> a, int64_t k) {
  std::vector<int32_t> order;
  std::vector<bool> used(k);
  for (int64_t step = 0; step < k; ++step) {
    int64_t next = -1;
    for (int64_t i = 0; i < k; ++i) {
      if (!used[i] && (next < 0 || a[i * k + i] < a[next * k + next])) next = i;
    }
    used[next] = true;
    order.push_back(static_cast<int32_t>(next));
    const std::vector<double> row(a.begin() + next * k, a.begin() + (next + 1) * k);
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) a[i * k + j] -= row[i] * row[j] / row[next];
    }
  }
  return order;
}

TEST(OrderTest, MinPivotFollowsTheShortestResidual) {
  for (int64_t k : {5, 64, 150}) {  // 150: more than two panels
    const Problem p = MakeProblem(1, k, 3 * k, 7 + k);
    std::vector<double> damped = p.h;
    const Factor f = *FactorHessian(p.h, Order::kMinPivot, 0.01);
    for (int64_t i = 0; i < k; ++i) damped[i * k + i] += f.damping;
    EXPECT_EQ(f.order, NaiveMinPivot(damped, k));
  }
}

TEST(FactorTest, OneTokenSucceedsWithItsDampingRecorded) {
  const Problem p = MakeProblem(1, 48, 1, 2);
  for (Order order : {Order::kNatural, Order::kActivation, Order::kMinPivot}) {
    const auto f = FactorHessian(p.h, order, 0.01);
    ASSERT_TRUE(f.ok()) << f.status();
    EXPECT_GT(f->damping, 0);
  }
}

TEST(FactorTest, DoublesTheDampingUntilItFactors) {
  // Indefinite by -3 % of the mean: 1 % and 2 % are not enough.
  const int64_t k = 32;
  std::vector<double> h(k * k);
  for (int64_t i = 0; i < k; ++i) h[i * k + i] = 1;
  h[1] = h[k] = 1.03;
  for (Order order : {Order::kNatural, Order::kActivation, Order::kMinPivot}) {
    const auto f = FactorHessian(h, order, 0.01);
    ASSERT_TRUE(f.ok()) << f.status();
    EXPECT_EQ(f->damping_doublings, 2);
    EXPECT_DOUBLE_EQ(f->damping, 0.04);
    ExpectFactors(*f, h);
  }
}

TEST(FactorTest, FailsLoudlyAfterSixDoublings) {
  std::vector<double> h = {1, 2, 2, 1};  // eigenvalue -1; 64 % is the most that is tried
  for (double damping : {0.01, 0.0}) {
    const auto f = FactorHessian(h, Order::kActivation, damping);
    EXPECT_EQ(f.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(f.status()), reason::kHessianNotPositiveDefinite);
  }
}

TEST(FactorTest, RefusesInputsThatAreAllZero) {
  const auto f = FactorHessian(std::vector<double>(16, 0.0), Order::kActivation, 0.01);
  EXPECT_EQ(ReasonOf(f.status()), reason::kHessianNotPositiveDefinite);
}

TEST(FactorTest, RefusesWhatIsNotSquare) {
  EXPECT_EQ(FactorHessian(std::vector<double>(7, 1.0), Order::kNatural, 0.01).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(FactorTest, CutsDeadColumnsOff) {
  Problem p = MakeProblem(1, 40, 120, 9);
  const int64_t silent = 3, faint = 17;  // never active, and a millionth of the others
  for (int64_t t = 0; t < p.tokens; ++t) {
    p.x[t * p.k + silent] = 0;
    p.x[t * p.k + faint] *= 1e-3f;
  }
  p.h = testing_quant::SecondMoment(p.x, p.tokens, p.k);
  for (double damping : {0.01, 0.0}) {
    const auto f = FactorHessian(p.h, Order::kNatural, damping);
    ASSERT_TRUE(f.ok()) << f.status();
    EXPECT_EQ(f->dead_columns, 2);
    for (int64_t dead : {silent, faint}) {
      EXPECT_GT(f->l[dead * p.k + dead], 0);
      for (int64_t i = 0; i < p.k; ++i) {
        if (i == dead) continue;
        EXPECT_EQ(f->l[dead * p.k + i], 0.0);
        EXPECT_EQ(f->l[i * p.k + dead], 0.0);
      }
    }
  }
}

// With a heavy-tailed diagonal the mean would call nearly every input dead.
TEST(FactorTest, MassiveActivationsKillNobody) {
  Problem p = MakeProblem(1, 64, 200, 10);
  for (int64_t t = 0; t < p.tokens; ++t) p.x[t * p.k + 5] *= 1e4f;
  p.h = testing_quant::SecondMoment(p.x, p.tokens, p.k);
  const auto f = FactorHessian(p.h, Order::kActivation, 0.01);
  ASSERT_TRUE(f.ok()) << f.status();
  EXPECT_EQ(f->dead_columns, 0);
  EXPECT_EQ(f->order.back(), 5);
}

TEST(DampingFor, IsAtLeastAHundredthWhereTokensAreFew) {
  EXPECT_EQ(DampingFor(1e-4, 2000, 1000), 1e-4);
  EXPECT_EQ(DampingFor(1e-4, 1999, 1000), 0.01);
  EXPECT_EQ(DampingFor(0.05, 1, 1000), 0.05);
  EXPECT_EQ(DampingFor(0, 1, 1000), 0) << "none was asked for";
}

}  // namespace
}  // namespace babai
