// The GPU's runner against the CPU's on tiny random models of every family. On an emulated device
// (tests/kernels/cuda/emulated/simt.h) too, which has no cuBLAS: without dense weights.
#include "server/engine/cuda_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "tests/engine/feeder.h"
#include "tests/engine/tiny_packed.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

#ifdef BABAI_EMULATED_DEVICE
constexpr bool kDense = false;
#else
constexpr bool kDense = true;
#endif

RunnerOptions Options(DType kv) {
  RunnerOptions options;
  options.kv_blocks = 24;
  options.max_step_tokens = 128;
  options.max_sequences = 4;
  options.kv_dtype = kv;
  options.numerics = Numerics::kReference;
  return options;
}

// The device, or a printed reason to skip.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status available = CudaAvailable(); !available.ok()) {
      GTEST_SKIP() << "needs a GPU: " << available.message();
    }
  }
  std::shared_ptr<const PackedModel> Packed(const TinyModel& tiny, int bits,
                                            Around around = Around::kNothing) {
    const std::string stem = absl::StrCat(tiny.family, bits, static_cast<int>(around));
    const auto checkpoint = OpenTiny(tiny, temp_.path() / absl::StrCat(stem, "hf"));
    PackTiny(*checkpoint, bits, temp_.path() / "staging", temp_.path() / stem, around);
    return *PackedModel::Open(temp_.path() / stem);
  }

  TempDir temp_;
  ThreadPool pool_{2};
};

// Prompts in uneven chunks beside one another, then decode steps; blocks of a sequence are never
// neighbours.
void FeedAll(Feeder& feeder) {
  feeder.Step({40, 3, 0});
  feeder.Step({1, 50, 33});
  feeder.Step({29, 1, 1});
  for (int i = 0; i < 18; ++i) feeder.Step({1, 1, 1});
  for (int i = 0; i < 2; ++i) feeder.Step({1, 0, 1});
  for (int i = 0; i < 5; ++i) feeder.Step({0, 1, 0});
}

Feeder FeederFor(Runner& runner, int64_t vocab) {
  return Feeder(runner,
                {RandomIds(90, vocab, 1), RandomIds(77, vocab, 2), RandomIds(54, vocab, 3)});
}

struct FamilyCase {
  std::string family;
  int bits;  // 0: dense weights, through cuBLAS
  Around around = Around::kNothing;
};

class CudaFamilyTest : public CudaTest, public testing::WithParamInterface<FamilyCase> {
 protected:
  std::shared_ptr<const PackedModel> PackedAs(const TinyModel& tiny) {
    return Packed(tiny, GetParam().bits, GetParam().around);
  }
};

// Activations are rounded to fp16 (bf16 for models that norm what they add) at four places a block
// and before and after the head, each a relative half ulp with random signs. Against the largest
// logits that is a few ulp: 8 half ulps of fp16 are 0.4 %, of bf16 3 %; twice
// that where things stand around weights, which round twice more for each product. A wrong norm,
// angle, mask or bias is off by 100
// %.
TEST_P(CudaFamilyTest, LogitsAreTheCpus) {
  TinyModel tiny;
  tiny.family = GetParam().family;
  tiny.intermediate = 96;
  const std::shared_ptr<const PackedModel> packed = PackedAs(tiny);
  auto cpu = *MakeCpuRunner(packed, Options(DType::kF32), pool_);
  auto cuda = MakeCudaRunner(packed, Options(DType::kF16));
  ASSERT_TRUE(cuda.ok()) << cuda.status();
  Feeder want = FeederFor(*cpu, tiny.vocab), got = FeederFor(**cuda, tiny.vocab);
  FeedAll(want);
  FeedAll(got);
  const double times = GetParam().around != Around::kNothing ? 2 : 1;
  const double half_ulp = times * (packed->config().post_norms ? 0x1p-8 : 0x1p-11);
  for (int s = 0; s < 3; ++s) {
    std::vector<float> difference = want.logits(s);
    ASSERT_EQ(difference.size(), got.logits(s).size());
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= got.logits(s)[i];
    EXPECT_LT(Rms(difference), 8 * half_ulp * Rms(want.logits(s))) << "sequence " << s;
    EXPECT_LT(WorstDifference(want.logits(s), got.logits(s)), 64 * half_ulp * Rms(want.logits(s)))
        << "sequence " << s;
  }
}

class CudaTwiceTest : public CudaFamilyTest {};

TEST_P(CudaTwiceTest, TwoRunsAreBitIdentical) {
  TinyModel tiny;
  tiny.family = GetParam().family;
  const std::shared_ptr<const PackedModel> packed = PackedAs(tiny);
  auto one = *MakeCudaRunner(packed, Options(DType::kF16));
  auto two = *MakeCudaRunner(packed, Options(DType::kF16));
  Feeder a = FeederFor(*one, tiny.vocab), b = FeederFor(*two, tiny.vocab),
         again = FeederFor(*one, tiny.vocab);
  FeedAll(a);
  FeedAll(b);
  FeedAll(again);  // graphs that were captured meanwhile, and a cache full of other keys
  for (int s = 0; s < 3; ++s) {
    EXPECT_EQ(a.logits(s), b.logits(s));
    EXPECT_EQ(a.logits(s), again.logits(s));
  }
}

std::vector<FamilyCase> AllFamilies() {
  std::vector<FamilyCase> cases;
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2", "opt"}) {
    if (kDense) cases.push_back({family, 0});
    cases.push_back({family, 4});
  }
  for (const int bits : {2, 3, 8}) cases.push_back({"llama", bits});
  for (const char* family : {"llama", "gemma3"}) cases.push_back({family, 4, Around::kSparse});
  for (const char* family : {"llama", "gemma3", "gpt2"}) {
    cases.push_back({family, 4, Around::kEverything});
  }
  return cases;
}

std::string NameOf(const testing::TestParamInfo<FamilyCase>& info) {
  return absl::StrCat(info.param.family, info.param.bits,
                      info.param.around == Around::kNothing  ? ""
                      : info.param.around == Around::kSparse ? "Sparse"
                                                             : "Surrounded");
}

// An emulated device is slow.
std::vector<FamilyCase> TwiceFamilies() {
  std::vector<FamilyCase> cases = AllFamilies();
  if (kDense) return cases;
  std::erase_if(cases, [](const FamilyCase& c) { return c.family != "llama" || c.bits != 4; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, CudaFamilyTest, testing::ValuesIn(AllFamilies()), NameOf);
INSTANTIATE_TEST_SUITE_P(Families, CudaTwiceTest, testing::ValuesIn(TwiceFamilies()), NameOf);

class CudaRunnerTest : public CudaTest {};

// A step of four sequences' first tokens, with and without choices.
TEST_F(CudaRunnerTest, ChoosesTheTokensThatItsLogitsSay) {
  auto runner = *MakeCudaRunner(Packed(TinyModel(), 4), Options(DType::kF16));
  ASSERT_TRUE(runner->ChoosesTokens());
  constexpr int kSequences = 4;
  const int64_t vocab = runner->config().vocab;
  const std::vector<int32_t> ids = RandomIds(kSequences, vocab, 8), positions(kSequences, 0),
                             begin = {0, 1, 2, 3, 4}, context(kSequences, 1), tables = {0, 1, 2, 3},
                             rows = {0, 1, 2, 3};
  const auto step = [&](std::vector<TokenChoice> choices, std::vector<float>& logits) {
    logits.assign(kSequences * vocab, std::nanf(""));
    const absl::Status done = runner->Step(
        {ids, positions, begin, context, tables, 1, rows, absl::MakeSpan(choices)}, logits.data());
    EXPECT_TRUE(done.ok()) << done;
    return choices;
  };
  std::vector<float> all, some;
  step({}, all);
  for (int round = 0; round < 3; ++round) {  // as it is, and as a graph
    const double u = 0.1 + 0.4 * round;
    const std::vector<TokenChoice> got =
        step({{true, 0.0f, 0.0}, {false}, {true, 0.7f, u}, {true, 0.0f, 0.0}}, some);
    EXPECT_TRUE(std::equal(some.begin() + vocab, some.begin() + 2 * vocab, all.begin() + vocab));
    for (const int s : {0, 3}) {
      const auto row = all.begin() + s * vocab;
      EXPECT_EQ(got[s].token, std::max_element(row, row + vocab) - row);
    }
    std::vector<double> running = {0};
    for (int64_t i = 0; i < vocab; ++i) {
      running.push_back(running.back() + std::exp(all[2 * vocab + i] / 0.7));
    }
    EXPECT_LE(running[got[2].token] / running.back(), u + 1e-5);
    EXPECT_GE(running[got[2].token + 1] / running.back(), u - 1e-5);
  }
}

TEST_F(CudaRunnerTest, CopiedBlocksHoldTheSame) {
  auto runner = *MakeCudaRunner(Packed(TinyModel(), 4), Options(DType::kF16));
  const std::vector<int32_t> ids = RandomIds(17, 300, 6);
  std::vector<int32_t> positions(17);
  std::iota(positions.begin(), positions.end(), 0);
  const auto step = [&](std::vector<int32_t> blocks, int32_t from, int32_t to) {
    const int32_t borders[] = {0, to - from}, context[] = {to}, rows[] = {to - from - 1};
    std::vector<float> logits(runner->config().vocab);
    StepBatch batch;
    batch.tokens = absl::MakeConstSpan(ids).subspan(from, to - from);
    batch.positions = absl::MakeConstSpan(positions).subspan(from, to - from);
    batch.sequence_begin = borders;
    batch.context_length = context;
    batch.block_tables = blocks;
    batch.max_blocks = 2;
    batch.logits_rows = rows;
    EXPECT_TRUE(runner->Step(batch, logits.data()).ok());
    return logits;
  };
  step({3, 5}, 0, 16);
  const std::vector<float> want = step({3, 5}, 16, 17);
  runner->CopyKvBlock(3, 9);
  EXPECT_EQ(step({9, 10}, 16, 17), want);
}

TEST_F(CudaRunnerTest, PlansTheMemoryItTakes) {
  for (const int bits : {0, 4}) {
    if (bits == 0 && !kDense) continue;
    const std::shared_ptr<const PackedModel> packed =
        Packed(TinyModel(), bits, bits != 0 ? Around::kEverything : Around::kNothing);
    const RunnerOptions options = Options(DType::kF16);
    const auto plan = PlanCudaMemory(*packed, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    auto runner = *MakeCudaRunner(packed, options);
    EXPECT_GE(plan->weight_bytes, runner->weight_bytes());
    EXPECT_LE(plan->weight_bytes, runner->weight_bytes() * 2);
    EXPECT_EQ(plan->kv_bytes_per_block * options.kv_blocks, runner->kv_bytes());
  }
}

TEST_F(CudaRunnerTest, WhatDoesNotFitIsRefusedBeforeItIsAllocated) {
  const std::shared_ptr<const PackedModel> packed = Packed(TinyModel(), 4);
  RunnerOptions options = Options(DType::kF16);
  options.kv_blocks = int64_t{1} << 40;
  const auto refused = MakeCudaRunner(packed, options);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
  EXPECT_EQ(ReasonOf(refused.status()), reason::kOutOfMemory);
  EXPECT_TRUE(MakeCudaRunner(packed, Options(DType::kF16)).ok());  // and the device lives on
}

TEST_F(CudaRunnerTest, AnotherCacheTypeIsRefused) {
  const auto refused = MakeCudaRunner(Packed(TinyModel(), 4), Options(DType::kF32));
  EXPECT_EQ(ReasonOf(refused.status()), reason::kUnsupportedShape);
}

}  // namespace
}  // namespace babai
