// Tables hold the values they are named after, and fits choose the best of what they may choose
// from.
#include "server/quant/table_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "server/reason/reason.h"
#include "tests/quant/problem.h"

namespace babai {
namespace {

using testing_quant::MakeProblem;
using testing_quant::Problem;

TableGrid Fit(const Problem& p, const TableFitOptions& options) {
  ThreadPool pool(2);
  auto grid = FitTables(p.w, p.n, p.k, options, pool, nullptr);
  EXPECT_TRUE(grid.ok()) << grid.status();
  return *std::move(grid);
}

std::vector<float> Values(const TableGrid& g, int64_t row, int64_t group) {
  std::vector<float> values(1 << g.bits);
  TableValues({{}, g.scales, g.table, g.rows, g.cols, g.group, g.bits, g.kind}, row, group,
              values.data());
  return values;
}

double Nearest(const std::vector<float>& values, double w) {
  double best = HUGE_VAL;
  for (float v : values) best = std::min(best, std::abs(w - v));
  return best * best;
}

// Error of rounding a row (or its columns [begin, end)) to the nearest of its values.
double RowError(const Problem& p, const TableGrid& g, int64_t row, int64_t begin, int64_t end,
                const std::vector<double>& importance) {
  double sum = 0;
  for (int64_t c = begin; c < end; ++c) {
    const double weight = importance.empty() ? 1 : importance[c];
    sum += weight * Nearest(Values(g, row, c / g.group), p.w[row * p.k + c]);
  }
  return sum;
}

std::vector<double> SomeImportance(int64_t k) {
  std::vector<double> importance(k);
  for (int64_t c = 0; c < k; ++c) importance[c] = std::exp(0.15 * static_cast<double>(c % 20));
  return importance;
}

// ---- fixed tables

TEST(FixedTableTest, HoldsTheValuesOfItsName) {
  EXPECT_EQ(FixedTable(GridKind::kOdd, 2), (std::vector<float>{-3, -1, 1, 3}));
  EXPECT_EQ(FixedTable(GridKind::kPowerOfTwo, 3),
            (std::vector<float>{-1, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1}));
  EXPECT_EQ(FixedTable(GridKind::kFloat4, 4),
            (std::vector<float>{-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0, 0.5, 1, 1.5, 2, 3, 4, 6}));
  // The published NF4 table, in fp16.
  const std::vector<float> nf4 = {
      -1,         -0.6961928f, -0.5250731f, -0.3949175f, -0.2844414f, -0.1847734f, -0.0910500f, 0,
      0.0795803f, 0.1609302f,  0.2461123f,  0.3379152f,  0.4407098f,  0.5626170f,  0.7229568f,  1};
  const std::vector<float> got = FixedTable(GridKind::kNormalFloat, 4);
  ASSERT_EQ(got.size(), nf4.size());
  for (size_t i = 0; i < nf4.size(); ++i)
    EXPECT_NEAR(got[i], nf4[i], std::abs(nf4[i]) * 0x1p-11 + 1e-6) << i;
  for (GridKind kind : {GridKind::kOdd, GridKind::kPowerOfTwo, GridKind::kNormalFloat}) {
    for (int bits : {2, 3, 4}) {
      const std::vector<float> table = FixedTable(kind, bits);
      EXPECT_EQ(table.size(), size_t{1} << bits);
      EXPECT_TRUE(std::is_sorted(table.begin(), table.end()));
      EXPECT_EQ(std::set<float>(table.begin(), table.end()).size(), table.size());
      for (float v : table) EXPECT_EQ(HalfToFloat(FloatToHalf(v)), v);
    }
  }
}

class FixedTableFitTest : public testing::TestWithParam<std::tuple<GridKind, int>> {};

TEST_P(FixedTableFitTest, SearchIsNeverWorseThanAbsMax) {
  const auto [kind, bits] = GetParam();
  const Problem p = MakeProblem(37, 96, 1, bits);
  const std::vector<double> importance = SomeImportance(p.k);
  TableFitOptions options = {.kind = kind, .bits = bits, .group = 32, .importance = importance};
  options.fit = ScaleFit::kAbsMax;
  const TableGrid plain = Fit(p, options);
  options.fit = ScaleFit::kMse;
  const TableGrid mse = Fit(p, options);
  options.fit = ScaleFit::kLossWeighted;
  const TableGrid weighted = Fit(p, options);
  double gained = 0;
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t c = 0; c < p.k; c += 32) {
      const auto error = [&](const TableGrid& g, const std::vector<double>& by) {
        return RowError(p, g, r, c, c + 32, by);
      };
      const std::vector<float> values = Values(plain, r, c / 32);
      float largest = 0;
      for (int64_t i = c; i < c + 32; ++i) largest = std::max(largest, std::abs(p.w[r * p.k + i]));
      EXPECT_NEAR(std::max(-values.front(), values.back()), largest, largest * 0x1p-11);
      // The whole range is not among the candidates, one 1.5 % off it is; the search sums in fp32.
      EXPECT_LE(error(mse, {}), error(plain, {}) * 1.05);
      EXPECT_LE(error(weighted, importance), error(mse, importance) * (1 + 1e-4));
      gained += error(plain, {}) - error(mse, {});
    }
  }
  EXPECT_GT(gained, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Tables, FixedTableFitTest,
    testing::Values(std::tuple(GridKind::kOdd, 2), std::tuple(GridKind::kOdd, 4),
                    std::tuple(GridKind::kPowerOfTwo, 3), std::tuple(GridKind::kNormalFloat, 2),
                    std::tuple(GridKind::kNormalFloat, 4), std::tuple(GridKind::kFloat4, 4)));

// ---- k-means

// The least error of any 2^bits clusters of a row: clusters are intervals of the sorted row.
double BestClusters(std::vector<std::pair<double, double>> points, int clusters) {
  std::sort(points.begin(), points.end());
  const size_t n = points.size();
  std::vector<double> mass(n + 1), moment(n + 1), square(n + 1);
  for (size_t i = 0; i < n; ++i) {
    const auto& [value, count] = points[i];
    mass[i + 1] = mass[i] + count;
    moment[i + 1] = moment[i] + count * value;
    square[i + 1] = square[i] + count * value * value;
  }
  std::vector<double> best(n + 1, HUGE_VAL);
  best[0] = 0;
  for (int k = 0; k < clusters; ++k) {
    std::vector<double> next(n + 1, HUGE_VAL);
    for (size_t end = 0; end <= n; ++end) {
      next[end] = best[end];
      for (size_t begin = 0; begin < end; ++begin) {
        const double m = moment[end] - moment[begin];
        const double cost = square[end] - square[begin] - m * m / (mass[end] - mass[begin]);
        next[end] = std::min(next[end], best[begin] + cost);
      }
    }
    best = next;
  }
  return best[n];
}

TEST(KMeansTest, FindsTheBestClusters) {
  for (int bits : {2, 3, 4}) {
    const Problem p = MakeProblem(20, 400, 1, 10 + bits);
    const std::vector<double> importance = SomeImportance(p.k);
    const TableGrid g = Fit(p, {.kind = GridKind::kKMeans, .bits = bits, .importance = importance});
    EXPECT_EQ(g.kind, TableKind::kRow);
    double got = 0, best = 0;
    for (int64_t r = 0; r < p.n; ++r) {
      const std::vector<float> values = Values(g, r, 0);
      EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
      std::vector<std::pair<double, double>> points;
      for (int64_t c = 0; c < p.k; ++c) points.emplace_back(p.w[r * p.k + c], importance[c]);
      const double row = BestClusters(points, 1 << bits);
      const double error = RowError(p, g, r, 0, p.k, importance);
      EXPECT_GE(error, row * (1 - 1e-6));
      got += error;
      best += row;
    }
    EXPECT_LE(got, 1.002 * best) << bits;  // values are stored in fp16
  }
}

TEST(KMeansTest, FewDistinctValuesAreAllFound) {
  Problem p = MakeProblem(5, 64, 1, 20);
  for (size_t i = 0; i < p.w.size(); ++i) p.w[i] = static_cast<float>(i % 3) - 1;
  const TableGrid g = Fit(p, {.kind = GridKind::kKMeans, .bits = 2});
  for (int64_t r = 0; r < p.n; ++r) EXPECT_EQ(RowError(p, g, r, 0, p.k, {}), 0);
}

// ---- binary coding

// The least error over every coding of every grid tried, by trying them all.
double BestCoding(const Problem& p, int64_t row, const std::vector<double>& importance) {
  constexpr int kLast = 7;  // 3 bits
  float low = 0, high = 0;
  for (int64_t c = 0; c < p.k; ++c) {
    low = std::min(low, p.w[row * p.k + c]);
    high = std::max(high, p.w[row * p.k + c]);
  }
  double best = HUGE_VAL;
  for (double fraction = 1; fraction > 0.2; fraction *= 0.9) {
    const double step = (high - low) * fraction / kLast;
    for (int c0 = 0; c0 < kLast; ++c0) {
      for (int x = 1; c0 + x < kLast; ++x) {
        for (int y = 1; y <= x && c0 + x + y <= kLast; ++y) {
          std::vector<float> values;
          for (int point : {c0, c0 + y, c0 + x, c0 + x + y})
            values.push_back(static_cast<float>(low * fraction + step * point));
          double error = 0;
          for (int64_t c = 0; c < p.k; ++c)
            error += importance[c] * Nearest(values, p.w[row * p.k + c]);
          best = std::min(best, error);
        }
      }
    }
  }
  return best;
}

TEST(BinaryCodingTest, FindsTheBestCodingOfASmallGrid) {
  const Problem p = MakeProblem(35, 64, 1, 30);
  const std::vector<double> importance = SomeImportance(p.k);
  const TableGrid g = Fit(p, {.kind = GridKind::kBinaryCoding,
                              .bits = 2,
                              .intermediate_bits = 3,
                              .importance = importance});
  EXPECT_EQ(g.kind, TableKind::kBinary);
  for (int64_t r = 0; r < p.n; ++r) {
    const double best = BestCoding(p, r, importance);
    // Scales and bias are stored in fp16.
    EXPECT_NEAR(RowError(p, g, r, 0, p.k, importance), best, 0.01 * best) << "row " << r;
  }
}

TEST(BinaryCodingTest, ValuesLieOnALinearGrid) {
  const Problem p = MakeProblem(33, 96, 1, 31);
  for (int intermediate : {4, 5, 6}) {
    const TableGrid g =
        Fit(p, {.kind = GridKind::kBinaryCoding, .bits = 3, .intermediate_bits = intermediate});
    for (int64_t r = 0; r < p.n; ++r) {
      const uint16_t* table = g.table.data() + r * 4;
      // x_i are positive integers times half a step: there is a step of which all are multiples.
      double residue = HUGE_VAL;
      for (int x = 1; x < 1 << intermediate; ++x) {
        const double step = HalfToFloat(table[3]) / x;
        double worst = 0;
        for (int i = 1; i <= 3; ++i) {
          const double multiple = HalfToFloat(table[i]) / step;
          worst = std::max(worst, std::abs(multiple - std::round(multiple)) / multiple);
        }
        residue = std::min(residue, worst);
      }
      EXPECT_LT(residue, 0x1p-9) << "row " << r;
      for (int i = 1; i <= 3; ++i) EXPECT_GT(HalfToFloat(table[i]), 0);
    }
  }
}

TEST(BinaryCodingTest, AFinerGridLosesLess) {
  const Problem p = MakeProblem(64, 128, 1, 32);
  double before = HUGE_VAL;
  for (int intermediate : {3, 4, 5, 6}) {
    const TableGrid g =
        Fit(p, {.kind = GridKind::kBinaryCoding, .bits = 3, .intermediate_bits = intermediate});
    double error = 0;
    for (int64_t r = 0; r < p.n; ++r) error += RowError(p, g, r, 0, p.k, {});
    EXPECT_LT(error, before) << intermediate;
    before = error;
  }
}

// ---- all kinds

std::vector<TableFitOptions> AllKinds() {
  return {{.kind = GridKind::kOdd, .bits = 2, .group = 32},
          {.kind = GridKind::kPowerOfTwo, .bits = 3, .group = 32},
          {.kind = GridKind::kNormalFloat, .bits = 4, .group = 32},
          {.kind = GridKind::kFloat4, .bits = 4, .group = 32},
          {.kind = GridKind::kKMeans, .bits = 3},
          {.kind = GridKind::kBinaryCoding, .bits = 2}};
}

TEST(TableFitTest, KeptWeightsDoNotCount) {
  const Problem p = MakeProblem(20, 64, 1, 40);
  Problem spoilt = p;
  std::vector<uint8_t> kept(p.w.size());
  for (size_t i = 0; i < kept.size(); i += 9) {
    kept[i] = 1;
    spoilt.w[i] = 1000;
  }
  for (TableFitOptions options : AllKinds()) {
    options.kept = &kept;
    const TableGrid a = Fit(p, options), b = Fit(spoilt, options);
    EXPECT_EQ(a.scales, b.scales);
    EXPECT_EQ(a.table, b.table);
  }
}

TEST(TableFitTest, ZerosDecodeToSomethingHarmless) {
  Problem p = MakeProblem(3, 64, 1, 41);
  std::fill_n(p.w.begin() + 64, 64, 0.0f);
  for (const TableFitOptions& options : AllKinds()) {
    const TableGrid g = Fit(p, options);
    for (float v : Values(g, 1, 0)) EXPECT_TRUE(std::isfinite(v));
    const bool has_zero = options.kind != GridKind::kOdd && options.kind != GridKind::kPowerOfTwo;
    if (has_zero) {
      EXPECT_EQ(RowError(p, g, 1, 0, 64, {}), 0);
    }
  }
}

TEST(TableFitTest, RefusesWhatItCanNotRepresent) {
  ThreadPool pool(1);
  Problem p = MakeProblem(40, 64, 1, 42);
  for (const TableFitOptions& options : AllKinds()) {
    for (float bad : {std::nanf(""), HUGE_VALF}) {
      Problem q = p;
      q.w[77] = bad;
      const auto grid = FitTables(q.w, q.n, q.k, options, pool, nullptr);
      EXPECT_EQ(ReasonOf(grid.status()), reason::kNonFiniteWeights);
    }
    Problem large = p;
    for (float& w : large.w) w *= 1e9f;
    const auto grid = FitTables(large.w, p.n, p.k, options, pool, nullptr);
    EXPECT_EQ(ReasonOf(grid.status()), reason::kUnsupportedFormat);
  }
  for (const TableFitOptions& bad :
       {TableFitOptions{.kind = GridKind::kOdd, .bits = 5, .group = 64},
        TableFitOptions{.kind = GridKind::kFloat4, .bits = 3, .group = 64},
        TableFitOptions{.kind = GridKind::kBinaryCoding, .bits = 3, .intermediate_bits = 2},
        TableFitOptions{.kind = GridKind::kBinaryCoding, .bits = 3, .intermediate_bits = 7},
        TableFitOptions{.kind = GridKind::kInteger, .bits = 3}}) {
    EXPECT_EQ(ReasonOf(FitTables(p.w, p.n, p.k, bad, pool, nullptr).status()),
              reason::kInvalidField);
  }
}

}  // namespace
}  // namespace babai
