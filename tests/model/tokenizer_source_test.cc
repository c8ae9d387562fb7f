#include "server/model/tokenizer_source.h"

#include <gtest/gtest.h>

#include "server/reason/reason.h"

namespace babai {
namespace {

TokenizerSource Read(const HfTokenizerFiles& files) {
  const auto source = ReadHfTokenizer(files);
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *source : TokenizerSource();
}

constexpr char kWithBos[] =
    R"({"added_tokens": [{"id": 7, "content": "<s>"}, {"id": 9, "content": "</s>"}],
  "model": {"vocab": {"a": 1, "b": {"deep": [1, 2]}}, "merges": [["a", "b"]]},
  "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}]}})";

TEST(HfTokenizer, NoFileIsNoError) { EXPECT_EQ(Read({}).kind, TokenizerSource::Kind::kNone); }

TEST(HfTokenizer, TokensAsTextsOrObjects) {
  const TokenizerSource source =
      Read({.tokenizer = kWithBos,
            .tokenizer_config = R"({"bos_token": {"content": "<s>"}, "chat_template": "T"})",
            .special_tokens_map = R"({"bos_token": "<x>", "eos_token": "</s>"})"});
  EXPECT_EQ(source.kind, TokenizerSource::Kind::kHuggingFaceJson);
  EXPECT_EQ(source.tokenizer_json, kWithBos);
  EXPECT_EQ(source.bos_token, "<s>");
  EXPECT_EQ(source.eos_token, "</s>");
  EXPECT_EQ(source.bos, 7);
  EXPECT_EQ(source.eos, 9);
  EXPECT_EQ(source.chat_template, "T");
}

TEST(HfTokenizer, BosComesFromThePostProcessorUnlessSwitched) {
  EXPECT_TRUE(Read({.tokenizer = kWithBos}).add_bos);
  EXPECT_FALSE(Read({.tokenizer = kWithBos}).add_eos);
  EXPECT_FALSE(
      Read({.tokenizer = kWithBos, .tokenizer_config = R"({"add_bos_token": false})"}).add_bos);
  EXPECT_FALSE(Read({.tokenizer = R"({"post_processor": null})"}).add_bos);
}

TEST(HfTokenizer, TemplateListsAndFiles) {
  const std::string list =
      R"({"chat_template": [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]})";
  EXPECT_EQ(Read({.tokenizer_config = list}).chat_template, "B");
  EXPECT_EQ(Read({.tokenizer_config = list, .chat_template = "C"}).chat_template, "C");
}

TEST(HfTokenizer, RefusesBrokenFiles) {
  EXPECT_FALSE(ReadHfTokenizer({.tokenizer = "{"}).ok());
  EXPECT_FALSE(ReadHfTokenizer({.tokenizer = "[]"}).ok());
  EXPECT_FALSE(ReadHfTokenizer({.tokenizer_config = R"({"add_bos_token": "yes"})"}).ok());
  EXPECT_FALSE(ReadHfTokenizer({.tokenizer = R"({"model": {}, "model": {}})"}).ok());
}

TEST(GgufTokenizer, LengthsMustAgree) {
  GgufHeader header;
  header.metadata["tokenizer.ggml.tokens"] = std::vector<std::string>{"a", "b", "c"};
  header.metadata["tokenizer.ggml.model"] = std::string("llama");
  header.metadata["tokenizer.ggml.bos_token_id"] = int64_t{1};
  header.metadata["tokenizer.ggml.eos_token_id"] = int64_t{77};
  const auto source = ReadGgufTokenizer(header, "x.gguf");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE(source->add_bos);  // SentencePiece, where the file is silent
  EXPECT_EQ(source->bos_token, "b");
  EXPECT_EQ(source->eos, -1);  // outside the vocabulary
  header.metadata["tokenizer.ggml.scores"] = std::vector<double>{0.5};
  EXPECT_EQ(ReasonOf(ReadGgufTokenizer(header, "x.gguf").status()), reason::kInvalidTokenizer);
}

}  // namespace
}  // namespace babai
