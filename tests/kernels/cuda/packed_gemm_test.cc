#include "kernels/cuda/packed_gemm.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <utility>

#include "device.h"
#include "kernels/cuda/repack.h"
#include "kernels/cuda/slice_gemm.h"
#include "kernels/cuda/stream_gemm.h"
#include "kernels/cuda/wide_gemm.h"
#include "packed_values.h"

namespace babai::cuda {
namespace {

struct Case {
  int64_t n, k, group;  // group >= k: one a row
  int bits;
  bool asymmetric;
  Dtype dtype;
  int m;
  float largest_scale = kLargestScale;
};

std::vector<uint16_t> RandomActivations(int64_t size, Dtype dtype, std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(size);
  for (uint16_t& v : x) v = Encode(normal(rng), dtype);
  return x;
}

struct Problem {
  Case c;
  PackedInt weights;
  PackedShape shape;
  std::vector<uint16_t> x;
  std::vector<double> want, bound;
};

// A fragment holds kBias + code (dequant.cuh), so that much more may cancel; each product of 16
// terms is summed by the tensor core in fp32 with truncation, and k / 16 of them follow one
// another. Above kSliceMaxTokens weights are rounded to dtype (twice for bf16): independent errors
// of at most two half ulps each, of which six times their root mean square is allowed.
void SetExpectations(Problem& p) {
  const Case& c = p.c;
  const PackedIntView w = p.weights.view();
  p.want.assign(c.m * c.n, 0), p.bound.assign(c.m * c.n, 0);
  std::vector<float> row(c.k), x(p.x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = Decode(p.x[i], c.dtype);
  const double bias = c.dtype == Dtype::kBf16 ? 128 : 0, top = (1 << c.bits) + bias;
  const double half_ulp = c.dtype == Dtype::kFp16 ? 0x1p-11 : 0x1p-8;
  for (int64_t r = 0; r < c.n; ++r) {
    DecodeRows(w, r, r + 1, row.data());
    for (int64_t m = 0; m < c.m; ++m) {
      double want = 0, magnitude = 0, squares = 0;
      for (int64_t i = 0; i < c.k; ++i) {
        want += double{row[i]} * x[m * c.k + i];
        squares += std::pow(double{row[i]} * x[m * c.k + i], 2);
        magnitude += c.largest_scale * 2 * top * std::abs(x[m * c.k + i]);
      }
      p.want[m * c.n + r] = want;
      p.bound[m * c.n + r] = half_ulp * std::abs(want) +
                             std::sqrt(c.k / 16.0 + 16) * 0x1p-23 * magnitude + 1e-7 +
                             (c.m > kSliceMaxTokens ? 6 * 2 * half_ulp * std::sqrt(squares) : 0);
    }
  }
}

Problem MakeProblem(const Case& c, uint32_t seed) {
  std::mt19937 rng(seed);
  Problem p{c, RandomPacked(c.n, c.k, c.group, c.bits, c.asymmetric, rng, c.largest_scale)};
  p.shape = *GpuShape(p.weights.view());
  p.shape.scale_exponent = ScaleExponent(p.weights.view().scales);
  p.x = RandomActivations(c.m * c.k, c.dtype, rng);
  SetExpectations(p);
  return p;
}

void ExpectEqual(const Problem& p, const std::vector<uint16_t>& y) {
  for (size_t i = 0; i < y.size(); ++i) {
    const double got = Decode(y[i], p.c.dtype);
    ASSERT_TRUE(std::abs(got - p.want[i]) <= p.bound[i])
        << "token " << i / p.c.n << " row " << i % p.c.n << ": got " << got << ", want "
        << p.want[i] << " within " << p.bound[i];
  }
}

std::string Name(const Case& c) {
  return "n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " group " +
         std::to_string(c.group) + " bits " + std::to_string(c.bits) +
         (c.asymmetric ? " asymmetric" : " symmetric") +
         (c.dtype == Dtype::kFp16 ? " fp16" : " bf16") + " m " + std::to_string(c.m);
}

std::vector<uint8_t> FreshWorkspace(const DeviceLimits& limits) {
  return std::vector<uint8_t>(PackedGemmWorkspaceBytes(limits), 0xff);
}

class PackedGemmTest : public GpuTest {
 protected:
  // y starts as NaN: an output left unwritten fails.
  // launch(p, device pointers): in place of PackedGemm().
  using LaunchFn = std::function<cudaError_t(const Problem&, const void* x, const void* weights,
                                             void* y, void* workspace)>;
  std::vector<uint16_t> Run(const Problem& p, const LaunchFn& launch = nullptr) {
    const absl::StatusOr<std::vector<uint8_t>> repacked = RepackForGpu(p.weights.view());
    EXPECT_TRUE(repacked.ok()) << repacked.status();
    const DeviceVector<uint8_t> weights(*repacked);
    const DeviceVector<uint16_t> x(p.x), y(std::vector<uint16_t>(p.c.m * p.c.n, 0x7fff));
    const DeviceLimits limits = *GetDeviceLimits(0);
    const DeviceVector<uint8_t> workspace(FreshWorkspace(limits));
    if (launch != nullptr) {
      EXPECT_EQ(launch(p, x.data(), weights.data(), y.data(), workspace.data()), cudaSuccess);
    } else {
      const absl::Status done = PackedGemm(
          {x.data(), weights.data(), y.data(), workspace.data(), p.shape, p.c.m, p.c.dtype}, limits,
          nullptr);
      EXPECT_TRUE(done.ok()) << done;
    }
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(workspace.ToHost(), FreshWorkspace(limits)) << "the workspace was not left clean";
    return y.ToHost();
  }
};

TEST_F(PackedGemmTest, EqualsItsDefinitionInEveryFormat) {
  uint32_t seed = 0;
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t group : {32, 64, 128, 1 << 20}) {
      for (const bool asymmetric : {false, true}) {
        for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
          for (const int m : {2, 5, 12, 20, 130}) {
            const Case c{200, group == 128 ? 640 : 576, group, bits, asymmetric, dtype, m};
            SCOPED_TRACE(Name(c));
            const Problem p = MakeProblem(c, ++seed);
            ExpectEqual(p, Run(p));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(PackedGemmTest, TakesAnyShape) {
  for (const Case& c :
       {Case{1, 32, 32, 4, false, Dtype::kFp16, 1},  // less than a tile
        Case{17, 96, 32, 4, true, Dtype::kFp16, 8},  // a row over, a tile cut short
        Case{1536, 576, 64, 4, false, Dtype::kBf16, 5},
        Case{576, 1536, 128, 4, false, Dtype::kFp16, 7},
        Case{4100, 4096, 128, 4, false, Dtype::kFp16, 1},  // more than one strip group a block
        Case{96, 60032, 128, 4, false, Dtype::kFp16, 2},   // x larger than shared memory
        Case{96, 8448, 64, 4, true, Dtype::kFp16, 2},      // few rows of many columns
        Case{64, 512, 128, 4, false, Dtype::kFp16, 21}, Case{1, 32, 32, 4, false, Dtype::kFp16, 9},
        Case{17, 96, 32, 4, true, Dtype::kFp16, 33},
        Case{1536, 576, 64, 4, false, Dtype::kBf16, 64},
        Case{576, 1536, 128, 4, false, Dtype::kFp16, 100},
        Case{4100, 1024, 128, 4, false, Dtype::kFp16, 16},
        Case{300, 14336, 128, 4, false, Dtype::kFp16, 200},    // many blocks a tile
        Case{4100, 256, 128, 4, false, Dtype::kFp16, 300}}) {  // many tiles a block
    SCOPED_TRACE(Name(c));
    const Problem p = MakeProblem(c, 7);
    ExpectEqual(p, Run(p));
    if (HasFatalFailure()) return;
  }
}

// Bounded they may be anything, also where fp16 weights would be rounded to nothing or infinite.
TEST_F(PackedGemmTest, TakesScalesOfAnyMagnitude) {
  uint32_t seed = 500;
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t group : {128, 1 << 20}) {
      for (const float largest : {0x1p-17f, 0x1p-4f, 512.0f}) {  // of weights
        for (const int m : {20, 130}) {
          const float scale = largest / static_cast<float>(1 << bits);
          const Case c{200, 640, group, bits, false, Dtype::kFp16, m, scale};
          SCOPED_TRACE(testing::Message() << Name(c) << " scale " << scale);
          const Problem p = MakeProblem(c, ++seed);
          ExpectEqual(p, Run(p));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Without a bound: weights of symmetric fp16 as of other formats.
TEST_F(PackedGemmTest, NeedsNoBoundOfScales) {
  for (const int m : {20, 130}) {
    Problem p = MakeProblem({200, 640, 128, 4, false, Dtype::kFp16, m}, 600 + m);
    p.shape.scale_exponent = kAnyExponent;
    ExpectEqual(p, Run(p));
    if (HasFatalFailure()) return;
  }
}

TEST(ScaleExponentTest, BoundsMagnitudes) {
  const auto exponent = [](std::vector<uint16_t> scales) { return ScaleExponent(scales); };
  EXPECT_EQ(exponent({0x3c00}), 1);                  // 1
  EXPECT_EQ(exponent({0x3bff}), 0);                  // just below
  EXPECT_EQ(exponent({0x2000, 0xb800, 0x0000}), 0);  // -0.5 among smaller ones
  EXPECT_EQ(exponent({0x7bff}), kAnyExponent);
  EXPECT_EQ(exponent({0xfc00}), kAnyExponent);  // infinite
  EXPECT_EQ(exponent({0x0001}), -23);
  EXPECT_EQ(exponent({0x0000}), -23);
  EXPECT_EQ(exponent({}), -23);
}

// What devices before Hopper get: no tiles, and less shared memory.
TEST_F(PackedGemmTest, WorksWithinTheLimitsOfOlderDevices) {
  for (const int64_t shared_bytes : {99 << 10, 163 << 10}) {
    const DeviceLimits older{GetDeviceLimits(0)->sms, shared_bytes, 8};
    for (const int bits : {2, 3, 4, 8}) {
      for (const int m : {2, 8, 21}) {
        const Problem p = MakeProblem({700, 4096, 32, bits, true, Dtype::kFp16, m}, 23);
        SCOPED_TRACE(testing::Message() << Name(p.c) << " in " << shared_bytes << " bytes");
        ExpectEqual(p, Run(p, [&](const Problem& q, auto* x, auto* weights, auto* y, auto* sums) {
                      const absl::Status done = PackedGemm(
                          {x, weights, y, sums, q.shape, q.c.m, q.c.dtype}, older, nullptr);
                      EXPECT_TRUE(done.ok()) << done;
                      return cudaSuccess;
                    }));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(PackedGemmTest, EveryStreamPlanGivesTheSame) {
  const Problem p = MakeProblem({1200, 2048, 128, 4, false, Dtype::kFp16, 2}, 11);
  const DeviceLimits limits = *GetDeviceLimits(0);
  for (const int stages : {kShallowStages, kDeepStages[4]}) {
    for (const int blocks : {1, 5, 60}) {  // 60: some get no strip
      const StreamGemmPlan plan{blocks, stages, 0};
      if (StreamGemmSharedBytes(p.shape, p.c.m, plan) > limits.shared_bytes) continue;
      SCOPED_TRACE(testing::Message() << stages << " stages, " << blocks << " blocks");
      ExpectEqual(p, Run(p, [&](const Problem& q, auto* x, auto* weights, auto* y, auto*) {
                    return LaunchStreamGemm({x, weights, y, q.shape, q.c.m, q.c.dtype}, plan, true,
                                            nullptr);
                  }));
      if (HasFatalFailure()) return;
    }
  }
}

// Several passes to none, warps with many k tiles to none, teams from nine tokens on.
std::vector<SliceGemmPlan> SlicePlans(const Problem& p, int64_t shared_bytes) {
  const int m = p.c.m;
  std::vector<SliceGemmPlan> plans;
  for (const int warps : {1, 3, MaxSliceWarps(m)}) {
    for (const int blocks : {1, 5, 7, 30, 60}) {
      const int ahead = SliceRing(p.shape.bits, SliceEights(m)) - 1;
      plans.push_back({blocks, 1, warps, ahead, 1 + warps % 2, 0});
      if (m > 8 && p.shape.strips() <= kPassStrips * (blocks / 2))
        plans.push_back({blocks, 2, warps, 1, 1 + warps % 2, 0});
    }
  }
  std::erase_if(plans, [&](const SliceGemmPlan& plan) {
    return SliceGemmSharedBytes(p.shape, m, plan) > shared_bytes;
  });
  std::shuffle(plans.begin(), plans.end(), std::mt19937(p.shape.bits + m));
  plans.resize(ManyOf(static_cast<int>(plans.size())));
  return plans;
}

TEST_F(PackedGemmTest, EverySlicePlanGivesTheSame) {
  const DeviceLimits limits = *GetDeviceLimits(0);
  for (const int bits : {2, 4, 8}) {  // units of two records and of one
    for (const int64_t group : {32, 1 << 20}) {
      for (const int m : {7, 13}) {
        for (const bool asymmetric : {false, true}) {
          const Problem p = MakeProblem({1200, 2080, group, bits, asymmetric, Dtype::kFp16, m}, 19);
          for (const SliceGemmPlan& plan : SlicePlans(p, limits.shared_bytes)) {
            SCOPED_TRACE(testing::Message()
                         << Name(p.c) << " " << plan.warps << " warps, " << plan.blocks
                         << " blocks, " << plan.team << " a team");
            ExpectEqual(p,
                        Run(p, [&](const Problem& q, auto* x, auto* weights, auto* y, auto* sums) {
                          return LaunchSliceGemm({{x, weights, y, q.shape, m, q.c.dtype}, sums},
                                                 plan, true, nullptr);
                        }));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST_F(PackedGemmTest, EveryWidePlanGivesTheSame) {
  const DeviceLimits limits = *GetDeviceLimits(0);
  if (limits.major != 9) GTEST_SKIP() << "wide_gemm.h needs sm_90";
  for (const int m : {40, 270}) {
    const Problem p = MakeProblem({1200, 2080, 32, 4, true, Dtype::kFp16, m}, 17);
    for (const auto& [tokens, rows] : {std::pair{32, 128},
                                       {32, 192},
                                       {32, 256},
                                       {64, 128},
                                       {64, 192},
                                       {64, 256},
                                       {128, 128},
                                       {128, 256},
                                       {192, 128},
                                       {256, 128}}) {
      const int tiles = (1200 + rows - 1) / rows * ((m + tokens - 1) / tokens);
      struct Division {
        int parts, clusters;
        bool shared;
      };
      for (const auto& [parts, clusters, shared] : {Division{1, std::min(tiles, 7), false},
                                                    {1, std::min(tiles, 7), true},
                                                    {1, tiles / 2 + 3, true},
                                                    {1, tiles + tiles / 3 + 1, true},
                                                    {1, tiles * 3, true},
                                                    {2, tiles, false},
                                                    {2, tiles * 3, true}}) {
        for (const int unit_tiles : {1, 2, 4}) {
          const WideGemmPlan plan{tokens, rows, parts, unit_tiles, 2, clusters, shared};
          if (clusters * parts > limits.sms ||
              WideGemmSharedBytes(p.shape, plan) > limits.shared_bytes)
            continue;
          SCOPED_TRACE(testing::Message()
                       << m << " tokens, " << tokens << " x " << rows << " a tile, " << clusters
                       << (shared ? " sharing" : "") << " clusters of " << parts << ", "
                       << unit_tiles << " k tiles");
          ExpectEqual(p, Run(p, [&](const Problem& q, auto* x, auto* weights, auto* y, auto* sums) {
                        return LaunchWideGemm({x, weights, y, sums, q.shape, q.c.m, q.c.dtype},
                                              plan, true, nullptr);
                      }));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(PackedGemmTest, RefusesWidePlansThatCannotBe) {
  const DeviceLimits limits = *GetDeviceLimits(0);
  if (limits.major != 9) GTEST_SKIP() << "wide_gemm.h needs sm_90";
  const Problem p = MakeProblem({256, 1024, 128, 4, false, Dtype::kFp16, 32}, 5);  // two tiles
  const DeviceVector<uint8_t> memory(std::vector<uint8_t>(1 << 20, 0));
  const WideGemmArgs args{memory.data(), memory.data(), memory.data(), memory.data(), p.shape, 32,
                          Dtype::kFp16};
  for (const WideGemmPlan& plan :
       {WideGemmPlan{32, 128, 1, 1, 2, 3, false}, WideGemmPlan{32, 128, 1, 1, 2, 17, true},
        WideGemmPlan{32, 128, 2, 1, 2, 1, false}, WideGemmPlan{32, 128, 2, 1, 2, 3, true}}) {
    EXPECT_EQ(LaunchWideGemm(args, plan, true, nullptr), cudaErrorInvalidValue);
  }
}

// A stage refilled before its words were read, or a sum in arrival order, would show here.
TEST_F(PackedGemmTest, AThousandRunsAreBitIdentical) {
  for (const int m : {1, 4, 8, 16, 32, 64, 128, 256}) {
    const Problem p = MakeProblem({ManyOf(4096), 1024, 128, 4, false, Dtype::kFp16, m}, 13);
    const DeviceVector<uint8_t> weights(*RepackForGpu(p.weights.view()));
    const DeviceVector<uint16_t> x(p.x);
    const DeviceLimits limits = *GetDeviceLimits(0);
    const DeviceVector<uint8_t> workspace(FreshWorkspace(limits));
    const std::vector<uint16_t> first = Run(p);
    const DeviceVector<uint16_t> y(std::vector<uint16_t>(first.size() * 10, 0));
    for (int round = 0; round < ManyOf(100); ++round) {
      for (int i = 0; i < 10; ++i) {
        ASSERT_TRUE(PackedGemm({x.data(), weights.data(), y.data() + i * first.size(),
                                workspace.data(), p.shape, p.c.m, p.c.dtype},
                               limits, nullptr)
                        .ok());
      }
      const std::vector<uint16_t> got = y.ToHost();
      for (int i = 0; i < 10; ++i) {
        ASSERT_TRUE(std::equal(first.begin(), first.end(), got.begin() + i * first.size()))
            << m << " tokens, round " << round;
      }
    }
  }
}

// --- ends

class GemmEndsTest : public PackedGemmTest {
 protected:
  // What the product leaves of `y`.
  template <typename X, typename Y>
  std::vector<Y> RunEnds(const Problem& p, const GemmEnds& ends, Turn turn,
                         const std::vector<X>& x_values, const std::vector<Y>& y_values) {
    const DeviceVector<uint8_t> weights(*RepackForGpu(p.weights.view()));
    const DeviceVector<X> x(x_values);
    const DeviceVector<Y> y(y_values);
    const DeviceLimits limits = *GetDeviceLimits(0);
    const DeviceVector<uint8_t> workspace(FreshWorkspace(limits));
    const absl::Status done = PackedGemm({x.data(), weights.data(), y.data(), workspace.data(),
                                          p.shape, p.c.m, p.c.dtype, true, ends, turn},
                                         limits, nullptr);
    EXPECT_TRUE(done.ok()) << done;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(workspace.ToHost(), FreshWorkspace(limits)) << "the workspace was not left clean";
    return y.ToHost();
  }
};

// Tokens of every kernel and tile of it; the last reach past a tile.
constexpr int kTokensOfEnds[] = {1, 2, 5, 12, 20, 40, 130};

TEST_F(GemmEndsTest, AddsToWhatIsThere) {
  uint32_t seed = 100;
  for (const int m : kTokensOfEnds) {
    for (const Turn turn : {Turn::kWide, Turn::kNarrow}) {
      const Problem p = MakeProblem({200, 640, 128, 4, false, Dtype::kFp16, m}, ++seed);
      SCOPED_TRACE(Name(p.c));
      std::mt19937 rng(seed);
      std::normal_distribution<float> normal;
      std::vector<float> before(p.want.size());
      for (float& v : before) v = normal(rng);
      GemmEnds ends;
      ends.output = GemmOutput::kAdd;
      const std::vector<float> got = RunEnds(p, ends, turn, p.x, before);
      for (size_t i = 0; i < got.size(); ++i) {
        const double want = before[i] + p.want[i];
        ASSERT_NEAR(got[i], want, p.bound[i] + 0x1p-23 * std::abs(want)) << i;
      }
    }
  }
}

double Gate(const GateFunction& f, double v) {
  return v / (1 + std::exp(-v * (f.linear + f.cubic * v * v)));
}

// |f'| is at most 1.13 for both functions, so that a gate's error is as much of up at most; expf
// is good to a few ulp of fp32.
TEST_F(GemmEndsTest, GatesPairsOfRows) {
  uint32_t seed = 200;
  for (const int m : kTokensOfEnds) {
    for (const GateFunction& f : {kSiluGate, kGeluTanhGate}) {
      const Problem p = MakeProblem({16 * 19, 640, 64, 4, true, Dtype::kFp16, m}, ++seed);
      SCOPED_TRACE(Name(p.c));
      GemmEnds ends;
      ends.output = GemmOutput::kGate, ends.gate = f;
      const int64_t n = p.c.n, half = n / 2;
      const std::vector<uint16_t> got =
          RunEnds(p, ends, Turn::kWide, p.x, std::vector<uint16_t>(m * half, 0x7fff));
      for (int64_t t = 0; t < m; ++t) {
        for (int64_t r = 0; r < half; ++r) {
          const int64_t gate = t * n + r / 8 * 16 + r % 8, up = gate + 8;
          const double value = Gate(f, p.want[gate]), want = value * p.want[up];
          const double error = 1.13 * p.bound[gate] * (std::abs(p.want[up]) + p.bound[up]) +
                               std::abs(value) * p.bound[up] +
                               (0x1p-11 + 0x1p-20) * std::abs(want) + 0x1p-24;
          ASSERT_NEAR(Decode(got[t * half + r], Dtype::kFp16), want, error) << t << " " << r;
        }
      }
    }
  }
}

// A normed value may be rounded to the neighbour of the one expected: independent errors of one
// ulp, of which six times their root mean square is allowed.
TEST_F(GemmEndsTest, NormsWhatItReads) {
  uint32_t seed = 300;
  const DeviceLimits limits = *GetDeviceLimits(0);
  for (const int bits : {2, 3, 4, 8}) {
    for (const int m : {1, 2}) {
      for (const int64_t k : {96, 640, 4096}) {
        const Case c{200, k, 32, bits, false, bits == 8 ? Dtype::kBf16 : Dtype::kFp16, m};
        Problem p = MakeProblem(c, ++seed);
        SCOPED_TRACE(Name(c));
        ASSERT_TRUE(PackedGemmTakesNorm(p.shape, m, limits));
        std::mt19937 rng(seed);
        std::normal_distribution<float> normal;
        std::vector<float> x(m * k), weights(k);
        for (float& v : x) v = 30 * normal(rng);
        for (float& v : weights) v = 1 + 0.3f * normal(rng);
        GemmEnds ends;
        ends.eps = 1e-5f;
        for (int t = 0; t < m; ++t) {
          double squares = 0;
          for (int64_t i = 0; i < k; ++i) squares += double{x[t * k + i]} * x[t * k + i];
          const double inverse = 1 / std::sqrt(squares / static_cast<double>(k) + ends.eps);
          for (int64_t i = 0; i < k; ++i) {
            const double normed = x[t * k + i] * inverse * weights[i];
            p.x[t * k + i] = Encode(static_cast<float>(normed), c.dtype);
          }
        }
        SetExpectations(p);
        const double half_ulp = c.dtype == Dtype::kFp16 ? 0x1p-11 : 0x1p-8;
        for (size_t i = 0; i < p.bound.size(); ++i) {
          double squares = 0;
          for (int64_t j = 0; j < k; ++j) {
            const double term = double{DecodeWeight(p.weights.view(), i % c.n, j)} *
                                Decode(p.x[i / c.n * k + j], c.dtype);
            squares += term * term;
          }
          p.bound[i] += 6 * 2 * half_ulp * std::sqrt(squares);
        }
        const DeviceVector<float> device_weights(weights);
        ends.norm = device_weights.data();
        ExpectEqual(p, RunEnds(p, ends, Turn::kNarrow, x, std::vector<uint16_t>(m * c.n, 0x7fff)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(PackedGemmArgsTest, RefusesWhatHasNoKernel) {
  const DeviceLimits limits{132, 227 << 10, 9};
  PackedGemmArgs args{nullptr, nullptr,     nullptr, nullptr, {64, 128, 4, 128, false},
                      1,       Dtype::kFp16};
  args.shape.bits = 5;
  EXPECT_EQ(PackedGemm(args, limits, nullptr).code(), absl::StatusCode::kInvalidArgument);
  args.shape.bits = 4, args.shape.k = 100;
  EXPECT_EQ(PackedGemm(args, limits, nullptr).code(), absl::StatusCode::kInvalidArgument);
  args.shape.k = 128, args.shape.n = 24, args.ends.output = GemmOutput::kGate;
  EXPECT_EQ(PackedGemm(args, limits, nullptr).code(), absl::StatusCode::kInvalidArgument);
  const float norm = 1;
  args.m = 9, args.ends = GemmEnds{&norm};
  EXPECT_EQ(PackedGemm(args, limits, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace babai::cuda
