// Encoding, saving and refusals, on generated tokenizers.
#include "server/text/tokenizer.h"

#include <cstdlib>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "tests/text/tiny_tokenizers.h"

namespace babai {
namespace {

using ::babai::testing::ByteLevelGgufSource;
using ::babai::testing::ByteLevelJson;
using ::babai::testing::ByteLevelSource;
using ::babai::testing::ControlId;
using ::babai::testing::Make;
using ::babai::testing::RandomText;
using ::babai::testing::SentencePieceSource;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Ids = std::vector<int32_t>;

Ids Encode(const Tokenizer& tokenizer, std::string_view text, bool parse_special = false,
           bool add_special = false) {
  const auto ids = tokenizer.Encode(text, add_special, parse_special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(Ids());
}

std::string Decode(const Tokenizer& tokenizer, const Ids& ids, bool skip_special = false) {
  const auto text = tokenizer.Decode(ids, skip_special);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

void ExpectRefused(const TokenizerSource& source, std::string_view words = "") {
  const auto tokenizer = MakeTokenizer(source);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(tokenizer.status()), reason::kInvalidTokenizer);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(std::string(words)));
}

void ExpectJsonRefused(std::string json, std::string_view words = "") {
  TokenizerSource source = ByteLevelSource();
  source.tokenizer_json = std::move(json);
  ExpectRefused(source, words);
}

class EachTokenizer : public ::testing::TestWithParam<TokenizerSource> {};

TEST_P(EachTokenizer, DecodesWhatItEncodes) {
  const auto tokenizer = Make(GetParam());
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const std::string text = RandomText(seed, 40);
    EXPECT_EQ(Decode(*tokenizer, Encode(*tokenizer, text)), text) << "seed " << seed;
  }
  EXPECT_TRUE(Encode(*tokenizer, "").empty());
}

TEST_P(EachTokenizer, IsRebuiltFromWhatItSaved) {
  const auto made = Make(GetParam());
  const std::filesystem::path dir = std::filesystem::path(::testing::TempDir()) /
                                    ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::create_directories(dir);
  ASSERT_TRUE(made->Save(dir).ok());
  const auto loaded = LoadTokenizer(dir);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ((*loaded)->vocab_size(), made->vocab_size());
  EXPECT_EQ((*loaded)->has_chat_template(), made->has_chat_template());
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const std::string text = RandomText(seed, 40, {"<|end|>", "<s>", "</s>", "hello"});
    const Ids ids = Encode(*made, text, /*parse_special=*/true, /*add_special=*/true);
    EXPECT_EQ(Encode(**loaded, text, /*parse_special=*/true, /*add_special=*/true), ids);
    EXPECT_EQ(Decode(**loaded, ids), Decode(*made, ids));
  }
  for (int32_t id = 0; id < made->vocab_size(); ++id) {
    EXPECT_EQ((*loaded)->IsSpecial(id), made->IsSpecial(id)) << id;
  }
}

TEST_P(EachTokenizer, RefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = Make(GetParam());
  const auto beyond = static_cast<int32_t>(tokenizer->vocab_size());
  for (const int32_t id :
       {-1, std::numeric_limits<int32_t>::min(), beyond, std::numeric_limits<int32_t>::max()}) {
    EXPECT_EQ(tokenizer->Decode({id}, false).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(tokenizer->NewDetokenizer(false)->Push(id).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

TEST_P(EachTokenizer, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = Make(GetParam());
  for (const char* text : {"\xFF", "abc\xC3", "\xED\xA0\x80", "\xC0\xAF"}) {
    EXPECT_EQ(tokenizer->Encode(text, false, false).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(EachTokenizer, KeepsControlTokensOutOfPlainText) {
  const auto tokenizer = Make(GetParam());
  const std::vector<std::string> specials = {"<|start|>", "<|end|>", "<s>", "</s>", "<unk>"};
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const std::string text = RandomText(seed, 20, specials);
    const Ids ids = Encode(*tokenizer, text);
    for (const int32_t id : ids) EXPECT_FALSE(tokenizer->IsSpecial(id)) << text;
    EXPECT_EQ(Decode(*tokenizer, ids), text);
  }
}

TEST_P(EachTokenizer, ServesThreadsAtOnce) {
  const auto tokenizer = Make(GetParam());
  const std::string text = RandomText(1, 2000, {"<|end|>", "</s>"});
  const Ids want = Encode(*tokenizer, text, /*parse_special=*/true);
  std::vector<Ids> got(4);
  std::vector<std::thread> threads;
  for (Ids& ids : got) {
    threads.emplace_back([&] { ids = Encode(*tokenizer, text, /*parse_special=*/true); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : got) EXPECT_EQ(ids, want);
}

TokenizerSource Gemma() {
  TokenizerSource source = SentencePieceSource();
  source.add_space_prefix = false;
  return source;
}

INSTANTIATE_TEST_SUITE_P(Families, EachTokenizer,
                         ::testing::Values(ByteLevelSource(), SentencePieceSource(), Gemma(),
                                           ByteLevelGgufSource("gpt-2"),
                                           ByteLevelGgufSource("smollm"),
                                           ByteLevelGgufSource("llama-bpe"),
                                           ByteLevelGgufSource("default")));

TEST(Tokenizer, MergesByRank) {
  const auto tokenizer = Make(ByteLevelSource());
  const Ids hello = Encode(*tokenizer, " hello");
  EXPECT_EQ(hello.size(), 1);
  EXPECT_EQ(Encode(*tokenizer, " hello hello").size(), 2);
  EXPECT_EQ(Encode(*tokenizer, "ell").size(), 2);
}

TEST(Tokenizer, ReadsControlTokensOnlyWhenAsked) {
  const auto tokenizer = Make(ByteLevelSource());
  const int32_t end = ControlId(*tokenizer, "<|end|>");
  EXPECT_THAT(Encode(*tokenizer, "a<|end|>", /*parse_special=*/true), Contains(end));
  EXPECT_THAT(Encode(*tokenizer, "a<|end|>", /*parse_special=*/false), Not(Contains(end)));
  // A plain added token is no control token.
  EXPECT_EQ(Encode(*tokenizer, "<think>").size(), 1);
  EXPECT_FALSE(tokenizer->IsSpecial(Encode(*tokenizer, "<think>").front()));
}

TEST(Tokenizer, HonoursTheRulesOfAddedTokens) {
  nlohmann::json json = ByteLevelJson();
  nlohmann::json& added = json["added_tokens"];
  added[0]["lstrip"] = true;
  added[1]["rstrip"] = true;
  added[3]["single_word"] = true;
  TokenizerSource source = ByteLevelSource();
  source.tokenizer_json = json.dump();
  const auto tokenizer = Make(source);
  const int32_t start = added[0]["id"], end = added[1]["id"], think = added[3]["id"];
  EXPECT_THAT(Encode(*tokenizer, " \n <|start|>", true), ElementsAre(start));
  EXPECT_THAT(Encode(*tokenizer, "<|end|> \n <|end|>", true), ElementsAre(end, end));
  EXPECT_THAT(Encode(*tokenizer, "<|end|> <|start|>", true), ElementsAre(end, start));
  EXPECT_THAT(Encode(*tokenizer, "<think>"), ElementsAre(think));
  EXPECT_THAT(Encode(*tokenizer, "x<think>"), Not(Contains(think)));
}

TEST(Tokenizer, IgnoresTruncationAndPaddingLeftInTheFile) {
  nlohmann::json json = ByteLevelJson();
  json["truncation"] = {
      {"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  json["padding"] = {{"strategy", {{"Fixed", 50}}},
                     {"direction", "Right"},
                     {"pad_to_multiple_of", nullptr},
                     {"pad_id", 0},
                     {"pad_type_id", 0},
                     {"pad_token", "!"}};
  TokenizerSource source = ByteLevelSource();
  source.tokenizer_json = json.dump();
  EXPECT_EQ(Encode(*Make(source), "abcdefgh").size(), 8);
}

TEST(Tokenizer, AddsBosAndEosAsTheFileSays) {
  TokenizerSource source = SentencePieceSource();
  source.add_eos = true;
  const auto tokenizer = Make(source);
  const Ids plain = Encode(*tokenizer, "hello");
  Ids framed = {1};
  framed.insert(framed.end(), plain.begin(), plain.end());
  framed.push_back(2);
  EXPECT_EQ(Encode(*tokenizer, "hello", false, /*add_special=*/true), framed);
  EXPECT_EQ(Decode(*tokenizer, framed, /*skip_special=*/true), "hello");
}

TEST(Tokenizer, FallsBackToBytes) {
  const auto tokenizer = Make(SentencePieceSource());
  // "▁" and the bytes C3 BC, whose tokens start at id 3.
  EXPECT_THAT(Encode(*tokenizer, "ü"), ElementsAre(::testing::_, 3 + 0xC3, 3 + 0xBC));
  // Text that spells a byte token is text.
  EXPECT_EQ(Decode(*tokenizer, Encode(*tokenizer, "<0x41>")), "<0x41>");
}

TEST(Tokenizer, PrefixesASpaceOnlyWhereTheModelDoes) {
  EXPECT_EQ(Encode(*Make(SentencePieceSource()), "hello").size(), 1);  // ▁hello
  const auto gemma = Make(Gemma());
  EXPECT_EQ(Decode(*gemma, Encode(*gemma, "hello")), "hello");
  EXPECT_EQ(Decode(*gemma, Encode(*gemma, " hello")), " hello");
}

TEST(Tokenizer, RefusesJsonThatMakesNoSense) {
  ExpectJsonRefused("");
  ExpectJsonRefused("{");
  ExpectJsonRefused("null");
  ExpectJsonRefused("[1, 2]");
  ExpectJsonRefused("{}");
  ExpectJsonRefused(std::string(1000, '['));
  ExpectJsonRefused(std::string("\xFF\x00\x01", 3));
  ExpectJsonRefused(ByteLevelJson().dump().substr(0, 2000));
}

TEST(Tokenizer, RefusesOddParts) {
  const auto without = [](auto change) {
    nlohmann::json json = ByteLevelJson();
    change(json);
    return json.dump();
  };
  using nlohmann::json;
  ExpectJsonRefused(without([](json& j) { j["decoder"] = nullptr; }), "decoder");
  ExpectJsonRefused(
      without([](json& j) {
        j["decoder"] = {
            {"type", "CTC"}, {"pad_token", "p"}, {"word_delimiter_token", "|"}, {"cleanup", true}};
      }),
      "CTC");
  ExpectJsonRefused(without([](json& j) { j["model"]["vocab"] = json::object(); }));
  ExpectJsonRefused(without([](json& j) { j["model"]["vocab"]["far"] = 4'000'000'000u; }));
  ExpectJsonRefused(without([](json& j) { j["model"]["vocab"]["far"] = -1; }));
  ExpectJsonRefused(without([](json& j) { j["model"]["merges"].push_back({"nowhere", "found"}); }));
  ExpectJsonRefused(without([](json& j) { j["model"]["merges"].push_back("one"); }));
  ExpectJsonRefused(
      without([](json& j) { j["model"]["continuing_subword_prefix"] = std::string(50, '#'); }));
  ExpectJsonRefused(without([](json& j) { j["added_tokens"][0]["id"] = 100000; }), "<|start|>");
  ExpectJsonRefused(without([](json& j) {
    j["pre_tokenizer"] = {{"type", "Split"},
                          {"pattern", {{"Regex", "(("}}},
                          {"behavior", "Isolated"},
                          {"invert", false}};
  }));
}

TEST(Tokenizer, RefusesNormalizersThatBlowTextsUp) {
  nlohmann::json json = ByteLevelJson();
  const nlohmann::json twice = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", nlohmann::json::array()}};
  for (int i = 0; i < 40; ++i) json["normalizer"]["normalizers"].push_back(twice);
  ExpectJsonRefused(json.dump(), "times as long");
  json["normalizer"] = {{"type", "Prepend"}, {"prepend", std::string(1 << 20, 'x')}};
  ExpectJsonRefused(json.dump(), "times as long");
}

TEST(Tokenizer, RefusesAFileAboveItsLimit) {
  ExpectJsonRefused(std::string((size_t{64} << 20) + 1, ' '), "at most");
}

TEST(Tokenizer, SurvivesARegexThatBacktracksForEver) {
  nlohmann::json json = ByteLevelJson();
  json["pre_tokenizer"] = {{"type", "Split"},
                           {"pattern", {{"Regex", "(a|a|a)*$"}}},
                           {"behavior", "Isolated"},
                           {"invert", false}};
  TokenizerSource source = ByteLevelSource();
  source.tokenizer_json = json.dump();
  const auto tokenizer = MakeTokenizer(source);
  if (tokenizer.ok()) {
    (*tokenizer)->Encode(std::string(60, 'a') + "b", false, false).IgnoreError();
  }
}

TEST(Tokenizer, RefusesGgufVocabulariesThatMakeNoSense) {
  const auto with = [](auto change) {
    TokenizerSource source = SentencePieceSource();
    change(source);
    return source;
  };
  using Source = TokenizerSource;
  ExpectRefused(with([](Source& s) { s.gguf_model = "bert"; }), "bert");
  ExpectRefused(with([](Source& s) { s.gguf_pre = "tekken"; }), "tekken");
  ExpectRefused(with([](Source& s) { s.tokens.clear(); }));
  ExpectRefused(with([](Source& s) { s.tokens[5] = s.tokens[6]; }), "tokens 5 and 6");
  ExpectRefused(with([](Source& s) { s.tokens[5] = "\xFF"; }), "UTF-8");
  ExpectRefused(with([](Source& s) { s.scores.pop_back(); }), "scores");
  ExpectRefused(with([](Source& s) { s.scores[9] = std::nanf(""); }), "scores");
  ExpectRefused(with([](Source& s) { s.token_types.pop_back(); }), "token_type");
  ExpectRefused(with([](Source& s) { s.bos = 1 << 30; }), "bos");
  ExpectRefused(with([](Source& s) { s.unk = 1 << 30; }), "unknown");
  ExpectRefused(with([](Source& s) { s.tokens.back() = std::string(100'000, 'x'); }), "long");
  ExpectRefused(ByteLevelGgufSource("no-such-split"), "no-such-split");
  Source bad_merge = ByteLevelGgufSource("gpt-2");
  bad_merge.merges.push_back("single");
  ExpectRefused(bad_merge, "merge");
  ExpectRefused(Source());
}

// Merging must stay near linear where the text is not cut before it: SentencePiece sees one word.
TEST(Tokenizer, HandlesLongTextsWithoutSpaces) {
  for (const TokenizerSource& source : {SentencePieceSource(), ByteLevelSource()}) {
    const auto tokenizer = Make(source);
    std::string text;
    while (text.size() < 1 << 20) text += "hellohe";
    EXPECT_EQ(Decode(*tokenizer, Encode(*tokenizer, text)), text);
  }
}

TEST(Tokenizer, ReportsAFolderWithoutATokenizer) {
  const auto missing = LoadTokenizer("/nowhere/at/all");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  const auto made = Make(ByteLevelSource());
  EXPECT_EQ(ReasonOf(made->Save("/nowhere/at/all")), reason::kIoError);
}

}  // namespace
}  // namespace babai
