#include "server/engine/runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/engine/block.h"
#include "server/engine/cuda_runner.h"
#include "server/reason/reason.h"
#include "tests/engine/feeder.h"
#include "tests/engine/tiny_packed.h"
#include "tests/model/map_checkpoint.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

// y [m, n] = x [m, k] W' by the definition.
std::vector<float> Product(const std::vector<float>& x, const std::vector<float>& w, int64_t k) {
  const int64_t m = x.size() / k, n = w.size() / k;
  std::vector<float> y(m * n);
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t r = 0; r < n; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c) sum += double{x[t * k + c]} * w[r * k + c];
      y[t * n + r] = static_cast<float>(sum);
    }
  }
  return y;
}

// Logits of a whole sequence through the parts of block.h, as the calibration forward goes.
std::vector<float> Forward(const Checkpoint& checkpoint, const std::vector<int32_t>& ids,
                           ThreadPool& pool) {
  const ModelConfig& config = checkpoint.config();
  const int64_t tokens = ids.size();
  const TensorSource source = SourceOf(checkpoint);
  const ModelParams model = *LoadModelParams(config, source);
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  RotaryAngles angles(config);
  angles.Set(positions);
  std::vector<float> x(tokens * config.hidden), h(x.size());
  EmbedTokens(config, model, *checkpoint.Read("embed.weight"), ids, positions, x.data(), pool);
  for (int64_t b = 0; b < config.layers; ++b) {
    const BlockParams params = *LoadBlockParams(config, b, source);
    const auto apply = [&](const std::vector<float>& in, const char* name, int64_t k) {
      return Product(in, *checkpoint.Read(BlockTensor(b, name)), k);
    };
    NormRows(config, params.attn_norm, x.data(), tokens, h.data(), pool);
    std::vector<float> q = apply(h, "q.weight", config.hidden);
    std::vector<float> k = apply(h, "k.weight", config.hidden);
    std::vector<float> v = apply(h, "v.weight", config.hidden);
    const QkvRows rows = {q.data(), k.data(), v.data(), config.q_rows(), config.kv_rows()};
    FinishQkv(config, b, params, angles, rows, pool);
    std::vector<float> a(q.size());
    EXPECT_TRUE(CausalAttention(config, b, rows, tokens, a.data(), pool).ok());
    std::vector<float> y = apply(a, "o.weight", config.q_rows());
    AddToResidual(config, params.o_bias, params.post_attn_norm, y.data(), tokens, x.data(), pool);
    NormRows(config, params.mlp_norm, x.data(), tokens, h.data(), pool);
    std::vector<float> gate;
    if (config.gated_mlp) gate = apply(h, "gate.weight", config.hidden);
    std::vector<float> up = apply(h, "up.weight", config.hidden);
    std::vector<float> out(up.size());
    Activate(config, params, gate.data(), config.intermediate, up.data(), config.intermediate,
             tokens, out.data(), pool);
    y = apply(out, "down.weight", config.intermediate);
    AddToResidual(config, params.down_bias, params.post_mlp_norm, y.data(), tokens, x.data(), pool);
  }
  NormRows(config, model.final_norm, x.data(), tokens, h.data(), pool);
  const char* head = config.tied_embedding ? "embed.weight" : "head.weight";
  std::vector<float> logits = Product(h, *checkpoint.Read(head), config.hidden);
  FinishLogits(config, model, logits.data(), tokens, pool);
  return logits;
}

RunnerOptions Options(Numerics numerics, DType kv = DType::kF32) {
  RunnerOptions options;
  options.kv_blocks = 24;
  options.max_step_tokens = 128;
  options.max_sequences = 4;
  options.kv_dtype = kv;
  options.numerics = numerics;
  return options;
}

class FamilyTest : public testing::TestWithParam<std::string> {
 protected:
  FamilyTest() {
    tiny_.family = GetParam();
    tiny_.intermediate = 96;  // not a multiple of 64: padding is exercised
    checkpoint_ = OpenTiny(tiny_, temp_.path() / "hf");
  }
  std::shared_ptr<const PackedModel> Packed(int bits) {
    const fs::path dir = temp_.path() / ("packed" + std::to_string(bits));
    PackTiny(*checkpoint_, bits, temp_.path() / "staging", dir);
    return *PackedModel::Open(dir);
  }

  TempDir temp_;
  TinyModel tiny_;
  ThreadPool pool_{2};
  std::unique_ptr<Checkpoint> checkpoint_;
};

// fp32 sums in another order move a logit by a few eps of its magnitude for each of the two blocks'
// products: 3e-6 of the root mean square was seen. 1e-4 leaves room for other processors and is far
// below what any wrong norm, mask, angle or bias shows.
TEST_P(FamilyTest, RunnerEqualsTheBlockByBlockForward) {
  const std::vector<int32_t> ids = RandomIds(90, tiny_.vocab, 1);
  const std::vector<float> want = Forward(*checkpoint_, ids, pool_);
  auto runner = *MakeCpuRunner(*checkpoint_, Options(Numerics::kReference), pool_);
  Feeder feeder(*runner, {ids});
  feeder.Step({50});
  feeder.Step({40});
  EXPECT_LT(WorstDifference(feeder.logits(0), want), 1e-4 * Rms(want));
}

TEST_P(FamilyTest, ReferenceNumericsAreThoseOfTheDecodedWeights) {
  const std::shared_ptr<const PackedModel> packed = Packed(4);
  MapCheckpoint decoded(checkpoint_->config());
  for (const TensorInfo& info : checkpoint_->tensors()) {
    decoded.Add(info, *packed->ReadFloat(info.name));
  }
  const std::vector<int32_t> ids = RandomIds(60, tiny_.vocab, 2);
  auto from_packed = *MakeCpuRunner(packed, Options(Numerics::kReference), pool_);
  auto from_decoded = *MakeCpuRunner(decoded, Options(Numerics::kReference), pool_);
  Feeder a(*from_packed, {ids}), b(*from_decoded, {ids});
  a.Step({60});
  b.Step({60});
  EXPECT_EQ(a.logits(0), b.logits(0));
}

// int8 activations: each product's error is about 0.5 % of its root mean square (matmul.h).
// Fourteen products in a row and the head, errors independent: sqrt(15) * 0.5 % = 2 %, and a factor
// of two.
TEST_P(FamilyTest, ServingNumericsStayNearTheReference) {
  const std::shared_ptr<const PackedModel> packed = Packed(8);
  const std::vector<int32_t> ids = RandomIds(60, tiny_.vocab, 3);
  auto serving = *MakeCpuRunner(packed, Options(Numerics::kServing, DType::kF16), pool_);
  auto reference = *MakeCpuRunner(packed, Options(Numerics::kReference), pool_);
  Feeder a(*serving, {ids}), b(*reference, {ids});
  a.Step({60});
  b.Step({60});
  std::vector<float> difference(a.logits(0));
  for (size_t i = 0; i < difference.size(); ++i) difference[i] -= b.logits(0)[i];
  EXPECT_LT(Rms(difference), 0.04 * Rms(b.logits(0)));
  EXPECT_GT(Rms(difference), 0) << "is it really another computation?";
}

// A token's logits have the same bits whatever else is in the step and however its sequence was
// cut.
TEST_P(FamilyTest, LogitsDoNotDependOnTheBatch) {
  const std::shared_ptr<const PackedModel> packed = Packed(4);
  for (const Numerics numerics : {Numerics::kServing, Numerics::kReference}) {
    auto runner = *MakeCpuRunner(packed, Options(numerics, DType::kF16), pool_);
    const std::vector<int32_t> one = RandomIds(70, tiny_.vocab, 4);
    const std::vector<int32_t> two = RandomIds(80, tiny_.vocab, 5);
    Feeder alone(*runner, {one});
    alone.Step({70});
    Feeder single(*runner, {one});
    for (int i = 0; i < 70; ++i) single.Step({1});
    Feeder batch(*runner, {two, one});
    batch.Step({80, 3});
    for (int i = 3; i < 70;) {
      const int64_t n = std::min(70 - i, 1 + i % 9);
      batch.Step({0, n});
      i += n;
    }
    EXPECT_EQ(alone.logits(0), single.logits(0));
    EXPECT_EQ(alone.logits(0), batch.logits(1));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         testing::Values("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2",
                                         "opt"),
                         [](const auto& info) { return info.param; });

class RunnerTest : public testing::Test {
 protected:
  RunnerTest() : checkpoint_(OpenTiny(TinyModel(), temp_.path() / "hf")) {}
  TempDir temp_;
  ThreadPool pool_{2};
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(RunnerTest, CopiedBlocksHoldTheSame) {
  auto runner = *MakeCpuRunner(*checkpoint_, Options(Numerics::kReference), pool_);
  const std::vector<int32_t> ids = RandomIds(17, 300, 6);
  const int32_t original[] = {3, 5}, copied[] = {9, 10};
  std::vector<int32_t> positions(17);
  std::iota(positions.begin(), positions.end(), 0);
  const auto step = [&](const int32_t* blocks, int32_t from, int32_t to) {
    const int32_t borders[] = {0, to - from}, context[] = {to}, rows[] = {to - from - 1};
    std::vector<float> logits(runner->config().vocab);
    StepBatch batch;
    batch.tokens = absl::MakeConstSpan(ids).subspan(from, to - from);
    batch.positions = absl::MakeConstSpan(positions).subspan(from, to - from);
    batch.sequence_begin = borders;
    batch.context_length = context;
    batch.block_tables = absl::MakeConstSpan(blocks, 2);
    batch.max_blocks = 2;
    batch.logits_rows = rows;
    EXPECT_TRUE(runner->Step(batch, logits.data()).ok());
    return logits;
  };
  const std::vector<float> want = step(original, 0, 17);
  runner->CopyKvBlock(3, 9);
  EXPECT_EQ(step(copied, 16, 17), want);
}

TEST_F(RunnerTest, PlansTheMemoryItTakes) {
  for (const int bits : {0, 2, 3, 4, 8}) {
    const fs::path dir = temp_.path() / ("p" + std::to_string(bits));
    PackTiny(*checkpoint_, bits, temp_.path() / "staging", dir);
    const std::shared_ptr<const PackedModel> packed = *PackedModel::Open(dir);
    const RunnerOptions options = Options(Numerics::kServing);
    auto runner = *MakeCpuRunner(packed, options, pool_);
    const MemoryPlan plan = *PlanMemory(*packed, options);
    EXPECT_EQ(plan.weight_bytes, runner->weight_bytes()) << bits;
    EXPECT_EQ(plan.kv_bytes_per_block * options.kv_blocks, runner->kv_bytes());
  }
}

TEST_F(RunnerTest, LogitsThatAreNotNumbersAreAnError) {
  MapCheckpoint broken(checkpoint_->config());
  for (const TensorInfo& info : checkpoint_->tensors()) {
    broken.Add(info, *checkpoint_->Read(info.name));
  }
  for (float& w : broken.values("final_norm.weight")) w = 1e38f;
  auto runner = *MakeCpuRunner(broken, Options(Numerics::kReference), pool_);
  const int32_t token[] = {5}, position[] = {0}, borders[] = {0, 1}, context[] = {1}, block[] = {0};
  const int32_t row[] = {0};
  std::vector<float> logits(runner->config().vocab);
  const absl::Status status =
      runner->Step({token, position, borders, context, block, 1, row}, logits.data());
  EXPECT_TRUE(absl::IsInternal(status));
  EXPECT_EQ(ReasonOf(status), reason::kNonFiniteLogits);
}

TEST_F(RunnerTest, ParametersThatDoNotFitAreRefused) {
  MapCheckpoint broken(checkpoint_->config());
  for (const TensorInfo& info : checkpoint_->tensors()) {
    broken.Add(info, *checkpoint_->Read(info.name));
  }
  broken.values("blocks.1.mlp_norm.weight").pop_back();
  const auto runner = MakeCpuRunner(broken, Options(Numerics::kReference), pool_);
  EXPECT_EQ(ReasonOf(runner.status()), reason::kInvalidModelFile);
  EXPECT_EQ(FieldOf(runner.status()), "blocks.1.mlp_norm.weight");
}

TEST(CudaRunnerWithoutADevice, SaysWhy) {
  const absl::Status available = CudaAvailable();
  if (available.ok()) GTEST_SKIP() << "there is a device";
  EXPECT_EQ(available.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(available), reason::kDeviceUnavailable);
  EXPECT_EQ(MakeCudaRunner(nullptr, RunnerOptions()).status(), available);
}

}  // namespace
}  // namespace babai
