#include "server/jobs/forward.h"

#include <gtest/gtest.h>

#include "tests/jobs/quantize_fixture.h"

namespace babai {
namespace {

using ForwardTest = QuantizeFixture;

// Passes every block with the original weights.
std::vector<float> LastHidden(const Checkpoint& checkpoint, const std::vector<Sequence>& sequences,
                              ThreadPool& pool, int64_t max_inner_bytes) {
  const ModelConfig& config = checkpoint.config();
  const TensorSource source = SourceOf(checkpoint);
  CalibrationStream stream(config, sequences, pool, [] { return false; }, max_inner_bytes);
  stream.Embed(*checkpoint.Read("embed.weight"), *LoadModelParams(config, source));
  for (int64_t b = 0; b < config.layers; ++b) {
    const auto params = *LoadBlockParams(config, b, source);
    stream.BeginBlock(b, &params);
    for (const Group group : kGroups) {
      const auto weights = std::make_shared<StackedWeights>(InputsOf(config, group));
      for (const std::string& linear : LinearsOf(config, group)) {
        weights->Add(*checkpoint.Read(BlockTensor(b, linear + ".weight")));
      }
      int64_t seen = 0;
      EXPECT_TRUE(stream
                      .Inputs(group, stream.sequences(),
                              [&](const float*, int64_t tokens) {
                                seen += tokens;
                                return absl::OkStatus();
                              })
                      .ok());
      EXPECT_EQ(seen, stream.sequences() * static_cast<int64_t>(sequences[0].size()));
      EXPECT_TRUE(stream.Advance(group, weights).ok());
    }
  }
  const float* hidden = stream.hidden(0);
  return {hidden, hidden + sequences.size() * sequences[0].size() * config.hidden};
}

TEST_F(ForwardTest, RecomputedActivationsAreTheSame) {
  WriteTinyHfModel({}, root() / "tiny");
  const auto checkpoint = *OpenCheckpoint(root() / "tiny");
  ThreadPool pool(2);
  // More than one chunk, and a last one that is smaller.
  std::vector<Sequence> sequences(5);
  for (auto& s : sequences) s = RandomIds(256, 320);
  std::vector<Sequence> many;
  for (int i = 0; i < 18; ++i) many.push_back(sequences[i % 5]);
  EXPECT_EQ(LastHidden(*checkpoint, many, pool, 0), LastHidden(*checkpoint, many, pool, 1 << 30));
}

TEST_F(ForwardTest, StopsBetweenChunks) {
  WriteTinyHfModel({}, root() / "tiny");
  const auto checkpoint = *OpenCheckpoint(root() / "tiny");
  ThreadPool pool(1);
  CalibrationStream stream(checkpoint->config(), {RandomIds(16, 320)}, pool, [] { return true; });
  const BlockParams params;
  stream.BeginBlock(0, &params);
  EXPECT_TRUE(absl::IsCancelled(stream.Advance(Group::kO, std::make_shared<StackedWeights>(64))));
}

}  // namespace
}  // namespace babai
