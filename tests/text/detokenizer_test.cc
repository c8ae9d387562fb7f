// Streams: whole characters only, and joined they are the whole decoded at once.
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/text/tiny_tokenizers.h"

namespace babai {
namespace {

using ::babai::testing::ByteLevelSource;
using ::babai::testing::Make;
using ::babai::testing::RandomText;
using ::babai::testing::SentencePieceSource;
using Ids = std::vector<int32_t>;

constexpr char kReplacement[] = "\xEF\xBF\xBD";

bool StartsInsideACharacter(std::string_view text) {
  return !text.empty() && (static_cast<unsigned char>(text.front()) & 0xC0) == 0x80;
}

std::string Stream(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  const auto stream = tokenizer.NewDetokenizer(skip_special);
  std::string all;
  for (const int32_t id : ids) {
    const auto piece = stream->Push(id);
    EXPECT_TRUE(piece.ok()) << piece.status();
    EXPECT_FALSE(StartsInsideACharacter(*piece));
    EXPECT_TRUE(tokenizer.Encode(*piece, false, false).ok()) << "not UTF-8";
    all += *piece;
  }
  return all + stream->Flush();
}

class EachDetokenizer : public ::testing::TestWithParam<TokenizerSource> {};

TEST_P(EachDetokenizer, JoinsToTheText) {
  const auto tokenizer = Make(GetParam());
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const std::string text = RandomText(seed, 60, {"hello", " wor"});
    EXPECT_EQ(Stream(*tokenizer, *tokenizer->Encode(text, false, false), true), text);
  }
}

// Random ids are mostly broken UTF-8, whose replacement must not depend on how it is cut either.
TEST_P(EachDetokenizer, JoinsToTheWholeDecodedAtOnceForAnyIds) {
  const auto tokenizer = Make(GetParam());
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Ids ids(random() % 30);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % tokenizer->vocab_size());
    for (const bool skip_special : {false, true}) {
      EXPECT_EQ(Stream(*tokenizer, ids, skip_special), *tokenizer->Decode(ids, skip_special));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, EachDetokenizer,
                         ::testing::Values(ByteLevelSource(), SentencePieceSource()));

TEST(Detokenizer, WaitsForTheWholeCharacter) {
  const auto tokenizer = Make(ByteLevelSource());
  const Ids ids = *tokenizer->Encode("\xF0\x9F\x98\x80!", false, false);
  ASSERT_EQ(ids.size(), 5);
  const auto stream = tokenizer->NewDetokenizer(true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(*stream->Push(ids[i]), "");
  EXPECT_EQ(*stream->Push(ids[3]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(*stream->Push(ids[4]), "!");
  EXPECT_EQ(stream->Flush(), "");
}

TEST(Detokenizer, ReplacesWhatStaysIncomplete) {
  const auto tokenizer = Make(ByteLevelSource());
  const Ids ids = *tokenizer->Encode("\xF0\x9F\x98\x80", false, false);
  const auto stream = tokenizer->NewDetokenizer(true);
  EXPECT_EQ(*stream->Push(ids[0]), "");
  EXPECT_EQ(*stream->Push(ids[1]), "");
  EXPECT_EQ(stream->Flush(), kReplacement);
  EXPECT_EQ(stream->Flush(), "");
}

TEST(Detokenizer, EmitsAtOnceACharacterMadeOfByteTokens) {
  const auto tokenizer = Make(SentencePieceSource());
  const auto stream = tokenizer->NewDetokenizer(true);
  EXPECT_EQ(*stream->Push(3 + 0xC3), "");
  EXPECT_EQ(*stream->Push(3 + 0xBC), "ü");
}

TEST(Detokenizer, SkipsControlTokensOnlyWhenAsked) {
  const auto tokenizer = Make(ByteLevelSource());
  const Ids ids = *tokenizer->Encode("a<|end|>b", false, /*parse_special=*/true);
  EXPECT_EQ(Stream(*tokenizer, ids, true), "ab");
  EXPECT_EQ(Stream(*tokenizer, ids, false), "a<|end|>b");
}

TEST(Detokenizer, OutlivesItsTokenizer) {
  auto tokenizer = Make(ByteLevelSource());
  const Ids ids = *tokenizer->Encode("ab", false, false);
  const auto stream = tokenizer->NewDetokenizer(true);
  tokenizer.reset();
  EXPECT_EQ(*stream->Push(ids[0]), "a");
}

}  // namespace
}  // namespace babai
