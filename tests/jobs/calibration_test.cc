#include "server/jobs/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/reason/reason.h"
#include "tests/jobs/quantize_fixture.h"

namespace babai {
namespace {

using testing::HasSubstr;

Sequence Count(int64_t n) {
  Sequence tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(i));
  return tokens;
}

TEST(CutSequences, SpreadsThemEvenlyWithoutOverlap) {
  const auto cut = CutSequences(Count(107), 4, 1, 10);
  ASSERT_TRUE(cut.ok());
  ASSERT_EQ(cut->size(), 5u);
  EXPECT_EQ(cut->front().front(), 0);
  EXPECT_EQ(cut->back().back(), 106);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ((*cut)[i].size(), 10u);
    if (i > 0) {
      EXPECT_GT((*cut)[i].front(), (*cut)[i - 1].back());
    }
  }
  EXPECT_TRUE(CutSequences(Count(50), 4, 1, 10).ok());
}

TEST(CutSequences, SaysHowMuchIsMissing) {
  const auto status = CutSequences(Count(49), 4, 1, 10).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), reason::kCalibrationTooSmall);
  EXPECT_THAT(std::string(status.message()), HasSubstr("49 tokens and needs 50"));
}

TEST(SplitHeldOut, TakesThemFromAllParts) {
  std::vector<Sequence> sequences;
  for (int32_t i = 0; i < 34; ++i) sequences.push_back({i, i});
  const CalibrationSet set = SplitHeldOut(sequences, 2);
  EXPECT_EQ(set.training.size(), 32u);
  ASSERT_EQ(set.held_out.size(), 2u);
  EXPECT_EQ(set.held_out[0][0], 16);
  EXPECT_EQ(set.held_out[1][0], 33);
  EXPECT_EQ(set.length, 2);
}

class LoadCalibrationTest : public QuantizeFixture {
 protected:
  LoadCalibrationTest() {
    WriteTinyHfModel({}, root() / "tiny");
    checkpoint_ = *OpenCheckpoint(root() / "tiny");
    spec_.samples = 3;
    spec_.length = 8;
    spec_.held_out = 1;
  }
  absl::StatusOr<CalibrationSet> Load() {
    return LoadCalibration(spec_, *checkpoint_, env_.model_roots, [] { return false; });
  }
  void UseFile(const std::string& name, const std::string& text) {
    WriteText(root() / name, text);
    spec_.source = CalibrationSpec::Source::kUri;
    spec_.uri = (root() / name).string();
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  CalibrationSpec spec_;
};

// The tiny tokenizer has a token for every byte and a few merges.
const std::string kText = "0123456789 calibration text, some of it 98765432109876543210";

TEST_F(LoadCalibrationTest, TextFilesAndJsonLinesGiveTheSameTokens) {
  spec_.source = CalibrationSpec::Source::kTexts;
  spec_.texts = {kText.substr(0, 11), kText.substr(11)};
  const auto inline_texts = Load();
  ASSERT_TRUE(inline_texts.ok()) << inline_texts.status();
  EXPECT_EQ(inline_texts->training.size(), 3u);
  EXPECT_EQ(inline_texts->held_out.size(), 1u);
  UseFile("a.jsonl", "{\"text\": \"" + kText.substr(0, 11) + "\", \"id\": 1}\r\n\n{\"text\": \"" +
                         kText.substr(11) + "\"}");
  const auto lines = Load();
  ASSERT_TRUE(lines.ok()) << lines.status();
  EXPECT_EQ(lines->training, inline_texts->training);
  EXPECT_EQ(lines->held_out, inline_texts->held_out);
  UseFile("a.txt", kText);
  EXPECT_TRUE(Load().ok());
}

TEST_F(LoadCalibrationTest, RefusesBadFiles) {
  for (const char* line : {"{", "[]", "{\"text\": 1}", "{\"texts\": \"x\"}", "\xff"}) {
    UseFile("bad.jsonl", std::string("{\"text\": \"fine\"}\n") + line + "\n");
    const auto status = Load().status();
    EXPECT_EQ(FieldOf(status), "calibration.uri") << line;
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
  }
  UseFile("bad.txt", kText + "\xff\xfe" + kText);
  EXPECT_EQ(Load().status().code(), absl::StatusCode::kInvalidArgument);
  UseFile("empty.txt", "");
  EXPECT_EQ(ReasonOf(Load().status()), reason::kCalibrationTooSmall);
  UseFile("data.bin", kText);
  EXPECT_EQ(FieldOf(Load().status()), "calibration.uri");
  spec_.uri = "/etc/hosts.txt";
  EXPECT_EQ(ReasonOf(Load().status()), reason::kSourceNotAllowed);
  std::filesystem::create_directory(root() / "dir.txt");
  spec_.uri = (root() / "dir.txt").string();
  EXPECT_FALSE(Load().ok());
}

TEST_F(LoadCalibrationTest, LongTextsGoInPiecesOfWholeCharacters) {
  std::string text;
  while (text.size() < (3u << 20)) text += "\xe2\x82\xac";  // no line ends anywhere
  spec_.source = CalibrationSpec::Source::kTexts;
  spec_.texts = {text};
  EXPECT_TRUE(Load().ok());
}

TEST_F(LoadCalibrationTest, DigestsFollowTheContent) {
  const auto digest = [&] {
    return *CalibrationDigest(spec_, checkpoint_->config(), env_.model_roots);
  };
  UseFile("a.txt", kText);
  const std::string first = digest();
  EXPECT_EQ(digest(), first);
  UseFile("b.txt", kText);
  EXPECT_EQ(digest(), first);
  UseFile("a.txt", kText + ".");
  EXPECT_NE(digest(), first);
}

}  // namespace
}  // namespace babai
