// Jobs whose blocks are quantized on the GPU, from end to end, against the same jobs on the CPU.
#include <gmock/gmock.h>

#include <cmath>

#include "server/engine/cuda_runner.h"
#include "server/jobs/device_quantizer.h"
#include "server/reason/reason.h"
#include "tests/jobs/quantize_fixture.h"

namespace babai {
namespace {

class DeviceJobTest : public QuantizeFixture {
 protected:
  void SetUp() override {
    if (const absl::Status s = CudaAvailable(); !s.ok()) {
      GTEST_SKIP() << "needs a GPU: " << s.message();
    }
    env_.use_device = true;
  }
  bool SaidWhere(const std::string& where) const {
    for (const JobProgress& p : context_.reports) {
      if (p.phase.find(where) != std::string::npos) return true;
    }
    return false;
  }
  absl::StatusOr<Manifest> RunOnDevice(const QuantizeSpec& spec) {
    auto manifest = Run(spec);
    EXPECT_TRUE(SaidWhere("on the GPU"))
        << testing::PrintToString(context_.reports.back().warnings);
    return manifest;
  }
};

class FamiliesOnDevice : public DeviceJobTest, public testing::WithParamInterface<const char*> {};

// The GPU's activations are rounded to fp16 (bf16 for Gemma, which norms outputs), the CPU's are
// not: the moments, and so every code near a tie, differ. What the certificates say is a mean over
// thousands of weights and moves by as much as the moments do, 2^-11 (2^-8) times the depth; small
// layers add the noise of few codes. Predictions differ by that and by what it does to the codes.
TEST_P(FamiliesOnDevice, CertifiesWhatTheCpuCertifies) {
  TinyModel model;
  model.family = GetParam();
  model.attention_bias = model.family == "qwen2";
  QuantizeSpec spec = SpecFor(model);
  const auto on_device = RunOnDevice(spec);
  ASSERT_TRUE(on_device.ok()) << on_device.status();
  ASSERT_TRUE(catalog_->Delete(spec.name).ok());
  env_.use_device = false;
  const auto on_cpu = Run(spec);
  ASSERT_TRUE(on_cpu.ok()) << on_cpu.status();
  EXPECT_EQ(on_device->content_key, on_cpu->content_key);
  EXPECT_EQ(on_device->packed_bytes, on_cpu->packed_bytes);
  EXPECT_EQ(on_device->tensors.size(), on_cpu->tensors.size());
  ASSERT_EQ(on_device->linears.size(), on_cpu->linears.size());
  const bool bf16 = model.family == "gemma3";
  for (size_t i = 0; i < on_cpu->linears.size(); ++i) {
    const LinearReport &mine = on_device->linears[i], &other = on_cpu->linears[i];
    EXPECT_EQ(mine.name, other.name);
    EXPECT_EQ(mine.bits_per_weight, other.bits_per_weight);
    EXPECT_EQ(mine.dead_columns, other.dead_columns) << mine.name;
    const double most = (i < 3 ? 0.01 : 0.05) * (bf16 ? 2 : 1);
    EXPECT_NEAR(mine.relative_error / other.relative_error, 1, most) << mine.name;
    EXPECT_NEAR(mine.damping / other.damping, 1, most) << mine.name;
    EXPECT_NEAR(mine.entropy_bits, other.entropy_bits, 0.02) << mine.name;
  }
  const Evaluation &mine = on_device->evaluation, &other = on_cpu->evaluation;
  EXPECT_EQ(mine.tokens, other.tokens);
  EXPECT_NEAR(mine.reference_perplexity / other.reference_perplexity, 1, bf16 ? 1e-2 : 2e-3);
  EXPECT_NEAR(mine.perplexity / other.perplexity, 1, bf16 ? 5e-2 : 2e-2);
  EXPECT_NEAR(mine.mean_kl / other.mean_kl, 1, 0.3);
}

INSTANTIATE_TEST_SUITE_P(All, FamiliesOnDevice,
                         testing::Values("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2",
                                         "opt"));

TEST_F(DeviceJobTest, SameKeySameBytes) {
  for (const int bits : {2, 3, 4, 8}) {
    QuantizeSpec spec = SpecFor({});
    spec.recipe.bits = bits;
    spec.recipe.group_size = 32;
    const auto first = RunOnDevice(spec);
    ASSERT_TRUE(first.ok()) << first.status();
    ASSERT_TRUE(catalog_->Delete(spec.name).ok());
    const auto second = RunOnDevice(spec);
    ASSERT_TRUE(second.ok());
    for (const auto& [name, file] : first->files)
      EXPECT_EQ(second->files.at(name).sha256, file.sha256) << name;
    ASSERT_TRUE(catalog_->Delete(spec.name).ok());
  }
}

// A part of the device does what all of it does.
TEST_F(DeviceJobTest, SameBytesBesideAnswers) {
  const QuantizeSpec spec = SpecFor({});
  const auto alone = RunOnDevice(spec);
  ASSERT_TRUE(alone.ok()) << alone.status();
  ASSERT_TRUE(catalog_->Delete(spec.name).ok());
  env_.beside_answers = true;
  const auto beside = RunOnDevice(spec);
  ASSERT_TRUE(beside.ok()) << beside.status();
  for (const auto& [name, file] : alone->files)
    EXPECT_EQ(beside->files.at(name).sha256, file.sha256) << name;
}

TEST_F(DeviceJobTest, OtherRecipesAreTheCpus) {
  QuantizeSpec spec = SpecFor({});
  spec.recipe = *PresetRecipe("coreq");
  ASSERT_FALSE(DeviceQuantizes(spec.recipe));
  ASSERT_TRUE(Run(spec).ok());
  EXPECT_TRUE(SaidWhere("on the CPU"));
  EXPECT_FALSE(SaidWhere("on the GPU"));
}

TEST_F(DeviceJobTest, CancelledAnywhereItLeavesNothing) {
  EXPECT_GT(CancelEverywhere(SpecFor({}), 1.5), 4);
}

// More tokens than any GPU holds.
TEST_F(DeviceJobTest, RefusesWhatDoesNotFit) {
  const QuantizeSpec spec = SpecFor({});
  const auto checkpoint = *OpenCheckpoint(spec.source_uri);
  auto writer = *PackedModelWriter::Create(catalog_->NewStagingDir("x"), catalog_->ModelDir("x"));
  ThreadPool pool(1);
  const std::function<bool()> never = [] { return false; };
  // 2^22 sequences, of which only the first says how long all are.
  std::vector<Sequence> sequences(1 << 22);
  sequences[0].resize(1 << 20);
  const auto made =
      MakeDeviceQuantizer({*checkpoint, spec.recipe, *writer, pool, never, sequences, 1 << 21});
  EXPECT_TRUE(absl::IsResourceExhausted(made.status())) << made.status();
  EXPECT_EQ(ReasonOf(made.status()), reason::kOutOfMemory);
}

}  // namespace
}  // namespace babai
