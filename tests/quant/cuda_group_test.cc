// The GPU's solver against the CPU's, on the same weights and the same second moments.
#include "server/quant/cuda_group.h"

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "server/reason/reason.h"

namespace babai {
namespace {

// fp16 activations [tokens, k] with correlated columns of very different sizes, and their second
// moment. They are integers so small that every fp32 sum of their products is exact: both solvers
// see the same moments to the bit.
struct Inputs {
  int64_t tokens, k;
  std::vector<uint16_t> x;

  Inputs(int64_t tokens_, int64_t k_, uint32_t seed, bool dead = false)
      : tokens(tokens_), k(k_), x(tokens * k) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> size(k);
    for (float& s : size) s = 4 * std::exp(normal(rng));
    for (int64_t t = 0; t < tokens; ++t) {
      const float common = normal(rng);
      float last = 0;
      for (int64_t c = 0; c < k; ++c) {
        last = 0.6f * last + 0.7f * normal(rng) + 0.4f * common;
        const float v = dead && c % 17 == 3 ? 0 : std::clamp(last * size[c], -90.0f, 90.0f);
        x[t * k + c] = __half_as_ushort(__float2half(std::nearbyint(v)));
      }
    }
  }
  std::vector<double> Hessian() const {
    std::vector<float> wide(k);
    std::vector<double> h(k * k, 0.0);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < k; ++c) wide[c] = __half2float(__ushort_as_half(x[t * k + c]));
      for (int64_t r = 0; r < k; ++r) {
        for (int64_t c = 0; c <= r; ++c) h[r * k + c] += double{wide[r]} * wide[c];
      }
    }
    for (int64_t r = 0; r < k; ++r) {
      for (int64_t c = 0; c <= r; ++c) h[c * k + r] = h[r * k + c] /= static_cast<double>(tokens);
    }
    return h;
  }
};

std::vector<float> RandomWeights(int64_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> w(count);
  for (float& v : w) v = __half2float(__float2half(normal(rng)));
  return w;
}

template <typename T>
cuda::Buffer OnDevice(const std::vector<T>& values) {
  auto buffer = cuda::Buffer::Of<T>(values);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *std::move(buffer);
}

class CudaGroup : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status s = cuda::CheckDevice(); !s.ok()) {
      GTEST_SKIP() << "needs a GPU: " << s.message();
    }
    stream_ = *cuda::Stream::Make();
    auto cublas = cuda::Cublas::Make(stream_);
    if (!cublas.ok()) GTEST_SKIP() << "needs a GPU with cuBLAS: " << cublas.status().message();
    cublas_ = *std::move(cublas);
    clock_ = std::make_unique<cuda::PhaseClock>(stream_, kCudaPhases);
  }

  absl::StatusOr<std::vector<QuantizedLinear>> Run(const Recipe& recipe,
                                                   const CudaGroupShape& shape,
                                                   const Inputs& inputs,
                                                   const std::vector<std::vector<float>>& weights) {
    auto solver =
        CudaGroupSolver::Make({&shape, 1}, recipe, cuda::Dtype::kFp16, stream_, *cublas_, *clock_);
    if (!solver.ok()) return solver.status();
    const cuda::Buffer x = OnDevice(inputs.x);
    if (absl::Status s = (*solver)->Begin(shape); !s.ok()) return s;
    // In two parts, as chunks of sequences come.
    const int64_t half = inputs.tokens / 2;
    absl::Status status = (*solver)->AddInputs(x.data(), half);
    if (status.ok()) {
      status = (*solver)->AddInputs(x.data<uint16_t>() + half * inputs.k, inputs.tokens - half);
    }
    std::vector<cuda::Buffer> stacked;
    for (size_t i = 0; i < weights.size() && status.ok(); ++i) {
      stacked.push_back(OnDevice(weights[i]));
      status = (*solver)->StackWeights(static_cast<int>(i), stacked.back().data<float>());
    }
    if (status.ok()) status = (*solver)->Solve();
    decoded_ = *cuda::Buffer::OnDevice(shape.n() * shape.k * 2);
    if (status.ok()) status = (*solver)->Decode(decoded_.data());
    if (status.ok()) status = stream_.Synchronize();
    if (!status.ok()) return status;
    return (*solver)->Finish();
  }

  cuda::Stream stream_;
  std::unique_ptr<cuda::Cublas> cublas_;
  std::unique_ptr<cuda::PhaseClock> clock_;
  cuda::Buffer decoded_;
  ThreadPool pool_{2};
};

const PackedInt& IntsOf(const QuantizedLinear& linear) {
  return std::get<PackedInt>(linear.packed.base);
}

// Codes that differ, of all.
double Differing(const PackedInt& a, const PackedInt& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.cols, b.cols);
  EXPECT_EQ(a.group, b.group);
  std::vector<uint8_t> x(a.cols), y(a.cols);
  int64_t differing = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    UnpackRow(a.view(), r, x.data());
    UnpackRow(b.view(), r, y.data());
    for (int64_t c = 0; c < a.cols; ++c) differing += x[c] != y[c];
  }
  return static_cast<double>(differing) / static_cast<double>(a.rows * a.cols);
}

struct Case {
  int bits;
  int64_t group;
  bool symmetric;
  ScaleFit fit;
  Order order;
  int64_t k;
  std::vector<int64_t> rows;
};

class AgainstTheCpu : public CudaGroup, public testing::WithParamInterface<Case> {};

TEST_P(AgainstTheCpu, SameIntegersAndLosses) {
  const Case& c = GetParam();
  Recipe recipe;
  recipe.bits = c.bits, recipe.group_size = c.group, recipe.symmetric = c.symmetric;
  recipe.scale_fit = c.fit, recipe.order = c.order;
  const Inputs inputs(std::min<int64_t>(2 * c.k, 1500), c.k, 1);
  std::vector<std::vector<float>> weights;
  for (size_t i = 0; i < c.rows.size(); ++i) {
    weights.push_back(RandomWeights(c.rows[i] * c.k, 10 + static_cast<uint32_t>(i)));
  }
  const auto got = Run(recipe, {c.rows, c.k}, inputs, weights);
  ASSERT_TRUE(got.ok()) << got.status();
  const auto factor = FactorHessian(inputs.Hessian(), recipe.order, recipe.damping);
  ASSERT_TRUE(factor.ok()) << factor.status();
  int64_t first_row = 0;
  for (size_t i = 0; i < c.rows.size(); ++i) {
    LinearProblem problem;
    problem.w = weights[i], problem.n = c.rows[i], problem.k = c.k, problem.factor = &*factor;
    const auto want = QuantizeLinear(problem, recipe, pool_, [] { return false; });
    ASSERT_TRUE(want.ok()) << want.status();
    const PackedInt &mine = IntsOf((*got)[i]), &other = IntsOf(*want);
    EXPECT_LT(Differing(mine, other), 1e-3);
    int64_t scales = 0;
    for (size_t s = 0; s < mine.scales.size(); ++s) scales += mine.scales[s] != other.scales[s];
    EXPECT_LE(scales, static_cast<int64_t>(mine.scales.size()) / 1000);
    const Certificate &a = (*got)[i].certificate, &b = want->certificate;
    EXPECT_NEAR(a.proxy_loss, b.proxy_loss, 1e-3 * b.proxy_loss);
    EXPECT_NEAR(a.reference_loss, b.reference_loss, 1e-3 * b.reference_loss);
    EXPECT_NEAR(a.babai_bound, b.babai_bound, 1e-3 * b.babai_bound);
    EXPECT_NEAR(a.rate_gap_bits, b.rate_gap_bits, 1e-3);
    EXPECT_NEAR(a.entropy_bits, b.entropy_bits, 1e-3);
    EXPECT_NEAR(a.clip_rate, b.clip_rate, 1e-3);
    EXPECT_NEAR(a.damping, b.damping, 1e-4 * b.damping);
    EXPECT_EQ(a.dead_columns, b.dead_columns);
    EXPECT_EQ(a.bits_per_weight, b.bits_per_weight);
    // What Decode() gives is what is stored, rounded once.
    std::vector<uint16_t> decoded(c.rows[i] * c.k);
    ASSERT_EQ(cudaMemcpy(decoded.data(), decoded_.data<uint16_t>() + first_row * c.k,
                         decoded.size() * 2, cudaMemcpyDeviceToHost),
              cudaSuccess);
    std::vector<float> stored(decoded.size());
    DecodeRows(mine.view(), 0, mine.rows, stored.data());
    for (size_t w = 0; w < stored.size(); ++w) {
      ASSERT_EQ(decoded[w], __half_as_ushort(__float2half(stored[w]))) << w;
    }
    first_row += c.rows[i];
  }
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, AgainstTheCpu,
    testing::Values(
        Case{4, 128, false, ScaleFit::kLossWeighted, Order::kActivation, 512, {160, 64, 64}},
        Case{4, 128, false, ScaleFit::kAbsMax, Order::kActivation, 512, {200}},
        Case{4, 64, true, ScaleFit::kMse, Order::kNatural, 256, {96}},
        Case{2, 32, false, ScaleFit::kLossWeighted, Order::kActivation, 352, {130}},
        Case{2, 64, true, ScaleFit::kLossWeighted, Order::kActivation, 576, {70}},
        Case{3, 128, false, ScaleFit::kLossWeighted, Order::kActivation, 1152, {100, 33}},
        Case{3, 32, true, ScaleFit::kAbsMax, Order::kNatural, 96, {40}},
        Case{8, 32, false, ScaleFit::kMse, Order::kActivation, 160, {50}},
        Case{8, -1, true, ScaleFit::kLossWeighted, Order::kActivation, 136, {37}},
        Case{4, -1, false, ScaleFit::kLossWeighted, Order::kNatural, 264, {8300}}));

TEST_F(CudaGroup, DeadInputsAreCutOffAndDampingIsRecorded) {
  Recipe recipe;
  recipe.damping = 0.02;
  const Inputs inputs(600, 128, 3, /*dead=*/true);
  const std::vector<std::vector<float>> weights = {RandomWeights(64 * 128, 4)};
  const auto got = Run(recipe, {{64}, 128}, inputs, weights);
  ASSERT_TRUE(got.ok()) << got.status();
  const auto factor = FactorHessian(inputs.Hessian(), recipe.order, recipe.damping);
  ASSERT_TRUE(factor.ok());
  const Certificate& c = (*got)[0].certificate;
  EXPECT_EQ(c.dead_columns, factor->dead_columns);
  EXPECT_GT(c.dead_columns, 0);
  EXPECT_NEAR(c.damping, factor->damping, 1e-4 * factor->damping);
}

TEST_F(CudaGroup, TwiceTheSameBits) {
  const Recipe recipe;
  const Inputs inputs(1000, 384, 5);
  const std::vector<std::vector<float>> weights = {RandomWeights(96 * 384, 6),
                                                   RandomWeights(48 * 384, 7)};
  const CudaGroupShape shape = {{96, 48}, 384};
  const auto first = Run(recipe, shape, inputs, weights);
  ASSERT_TRUE(first.ok()) << first.status();
  for (int i = 0; i < 5; ++i) {
    const auto again = Run(recipe, shape, inputs, weights);
    ASSERT_TRUE(again.ok());
    for (size_t l = 0; l < 2; ++l) {
      EXPECT_EQ(IntsOf((*first)[l]).codes, IntsOf((*again)[l]).codes);
      EXPECT_EQ(IntsOf((*first)[l]).scales, IntsOf((*again)[l]).scales);
      EXPECT_EQ((*first)[l].certificate.proxy_loss, (*again)[l].certificate.proxy_loss);
      EXPECT_EQ((*first)[l].certificate.reference_loss, (*again)[l].certificate.reference_loss);
    }
  }
}

TEST_F(CudaGroup, RefusesWhatTheCpuRefuses) {
  const Recipe recipe;
  Inputs inputs(300, 128, 8);
  std::vector<std::vector<float>> weights = {RandomWeights(32 * 128, 9)};
  const CudaGroupShape shape = {{32}, 128};
  weights[0][77] = std::nanf("");
  EXPECT_EQ(ReasonOf(Run(recipe, shape, inputs, weights).status()), reason::kNonFiniteWeights);
  weights[0][77] = 1e30f;
  EXPECT_EQ(ReasonOf(Run(recipe, shape, inputs, weights).status()), reason::kUnsupportedFormat);
  weights[0][77] = 0;
  inputs.x[5] = 0x7c00;  // infinity
  EXPECT_EQ(ReasonOf(Run(recipe, shape, inputs, weights).status()), reason::kCalibrationNonFinite);
  std::fill(inputs.x.begin(), inputs.x.end(), uint16_t{0});
  EXPECT_EQ(ReasonOf(Run(recipe, shape, inputs, weights).status()),
            reason::kHessianNotPositiveDefinite);
}

TEST(CudaGroupRecipes, TakesTheSweepOnUniformGridsAlone) {
  EXPECT_TRUE(CudaGroupSolver::Takes(*PresetRecipe("babai")));
  EXPECT_TRUE(CudaGroupSolver::Takes(*PresetRecipe("gptq")));
  for (const char* preset : {"dense", "rtn", "ssqr", "hptq", "gptqt", "coreq", "watersic", "quip",
                             "squeezellm", "pot", "nf4", "mixed", "best"}) {
    EXPECT_FALSE(CudaGroupSolver::Takes(*PresetRecipe(preset))) << preset;
  }
}

}  // namespace
}  // namespace babai
