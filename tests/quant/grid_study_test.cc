// Bits that each grid wastes on a Gaussian source: gap = R - 1/2 log2(1 / MSE), R being what is
// stored, scales included. A rotated weight matrix looks like this source, so the table below is
// what the choice of a grid costs before any solver helps. 2^19 samples, as far as 0.02 bit.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "kernels/formats/float16.h"
#include "server/quant/scale_fit.h"
#include "server/quant/step_fit.h"
#include "server/quant/table_fit.h"

namespace babai {
namespace {

constexpr int64_t kRows = 512, kCols = 1024, kGroup = 128;
constexpr double kTolerance = 0.02;
constexpr double kScaleBits = 16.0 / kGroup;

const std::vector<float>& Source() {
  static const std::vector<float> source = [] {
    std::mt19937_64 rng(19);
    std::normal_distribution<float> normal;
    std::vector<float> w(kRows * kCols);
    for (float& x : w) x = normal(rng);
    return w;
  }();
  return source;
}

template <typename Grid>
double MeanSquaredError(const Grid& grid) {
  ThreadPool pool(2);
  const auto s = Solve<float>({Solver::kNearest}, Source(), grid,
                              static_cast<const PackedFactor<float>*>(nullptr), pool, nullptr);
  EXPECT_TRUE(s.ok()) << s.status();
  return std::accumulate(s->losses.begin(), s->losses.end(), 0.0) / (kRows * kCols);
}

double Gap(double bits, double mse) { return bits + 0.5 * std::log2(mse); }

UniformGrid Integers(int bits, ScaleFit fit) {
  ThreadPool pool(2);
  return *FitScales(Source(), kRows, kCols, {bits, true, kGroup, fit, {}}, pool, nullptr);
}

double TableGap(GridKind kind, int bits) {
  ThreadPool pool(2);
  const TableFitOptions options = {
      .kind = kind, .bits = bits, .group = kGroup, .fit = ScaleFit::kMse};
  return Gap(bits + kScaleBits,
             MeanSquaredError(*FitTables(Source(), kRows, kCols, options, pool, nullptr)));
}

struct Row {
  int bits;
  double gap;
};

// The largest weight is a code that two's complement lacks: it is clipped to the code below.
TEST(GridStudyTest, TwosComplementAbsMax) {
  for (const auto& [bits, gap] : {Row{2, 0.91}, Row{3, 0.89}, Row{4, 0.88}}) {
    UniformGrid grid = Integers(bits, ScaleFit::kAbsMax);
    // The fit spreads 2^bits - 1 steps over the range, the study 2^bits.
    for (uint16_t& s : grid.scales) {
      s = FloatToHalf(HalfToFloat(s) * static_cast<float>((1 << bits) - 1) /
                      static_cast<float>(1 << bits));
    }
    EXPECT_NEAR(Gap(bits + kScaleBits, MeanSquaredError(grid)), gap, kTolerance) << bits;
  }
}

TEST(GridStudyTest, TwosComplementSearched) {
  for (const auto& [bits, gap] : {Row{2, 0.74}, Row{3, 0.77}, Row{4, 0.81}}) {
    EXPECT_NEAR(Gap(bits + kScaleBits, MeanSquaredError(Integers(bits, ScaleFit::kMse))), gap,
                kTolerance)
        << bits;
  }
}

TEST(GridStudyTest, OddLevels) {
  for (const auto& [bits, gap] : {Row{2, 0.57}, Row{3, 0.70}, Row{4, 0.79}})
    EXPECT_NEAR(TableGap(GridKind::kOdd, bits), gap, kTolerance) << bits;
}

TEST(GridStudyTest, PowersOfTwo) {
  for (const auto& [bits, gap] : {Row{2, 0.78}, Row{3, 0.79}, Row{4, 1.63}})
    EXPECT_NEAR(TableGap(GridKind::kPowerOfTwo, bits), gap, kTolerance) << bits;
}

TEST(GridStudyTest, Float4) { EXPECT_NEAR(TableGap(GridKind::kFloat4, 4), 0.83, kTolerance); }

// One long row: the table itself costs nothing there.
TEST(GridStudyTest, KMeans) {
  ThreadPool pool(2);
  for (const auto& [bits, gap] : {Row{2, 0.45}, Row{3, 0.57}, Row{4, 0.64}}) {
    const auto grid = FitTables(Source(), 1, kRows * kCols,
                                {.kind = GridKind::kKMeans, .bits = bits}, pool, nullptr);
    ASSERT_TRUE(grid.ok()) << grid.status();
    EXPECT_NEAR(Gap(bits, MeanSquaredError(*grid)), gap, kTolerance) << bits;
  }
}

// By the entropy of the integers, and by the bytes that format F6 makes of them, at every rate.
TEST(GridStudyTest, EntropyCodedIntegers) {
  ThreadPool pool(2);
  for (double rate : {1.5, 2.0, 3.0, 4.0}) {
    const auto found = SearchStep({.solve = {Solver::kNearest}, .target_bits = rate}, Source(),
                                  kRows, kCols, nullptr, nullptr, pool, nullptr);
    ASSERT_TRUE(found.ok()) << found.status();
    const auto& losses = found->solution.losses;
    const double mse = std::accumulate(losses.begin(), losses.end(), 0.0) / (kRows * kCols);
    EXPECT_NEAR(Gap(EmpiricalEntropy(found->solution.codes), mse), 0.253, kTolerance) << rate;
    // Scales (0.047 bit on so small a matrix), model and strips are counted here.
    const double scales = 16.0 * (kRows + kCols) / (kRows * kCols);
    EXPECT_NEAR(Gap(found->bits - scales, mse), 0.253, kTolerance) << rate;
  }
}

}  // namespace
}  // namespace babai
