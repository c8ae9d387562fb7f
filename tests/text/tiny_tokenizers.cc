#include "tests/text/tiny_tokenizers.h"

#include <array>
#include <random>

#include "gtest/gtest.h"

namespace babai::testing {
namespace {

using nlohmann::json;

std::string Utf8(uint32_t code) {
  std::string out;
  if (code < 0x80) {
    out = {static_cast<char>(code)};
  } else if (code < 0x800) {
    out = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
  } else if (code < 0x10000) {
    out = {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
           static_cast<char>(0x80 | (code & 0x3F))};
  } else {
    out = {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 0x3F)),
           static_cast<char>(0x80 | (code >> 6 & 0x3F)), static_cast<char>(0x80 | (code & 0x3F))};
  }
  return out;
}

// The 256 characters that stand for bytes, in byte order.
std::vector<std::string> ByteCharacters() {
  std::vector<std::string> characters;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                           (byte >= 0xAE && byte <= 0xFF);
    characters.push_back(Utf8(printable ? byte : next++));
  }
  return characters;
}

constexpr std::array<std::pair<const char*, const char*>, 8> kMerges = {{{"h", "e"},
                                                                         {"l", "l"},
                                                                         {"he", "ll"},
                                                                         {"hell", "o"},
                                                                         {"Ġ", "hello"},
                                                                         {"e", "n"},
                                                                         {"en", "d"},
                                                                         {"Ġ", "w"}}};

std::vector<std::string> ByteLevelTokens() {
  std::vector<std::string> tokens = ByteCharacters();
  for (const auto& [left, right] : kMerges) tokens.push_back(std::string(left) + right);
  return tokens;
}

json AddedToken(size_t id, const char* content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

}  // namespace

json ByteLevelJson() {
  json vocab = json::object();
  for (const std::string& token : ByteLevelTokens()) vocab[token] = vocab.size();
  json merges = json::array();
  for (const auto& [left, right] : kMerges) merges.push_back({left, right});
  const size_t n = vocab.size();
  const json step = {{"type", "ByteLevel"},
                     {"add_prefix_space", false},
                     {"trim_offsets", true},
                     {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens",
           {AddedToken(n, "<|start|>", true), AddedToken(n + 1, "<|end|>", true),
            AddedToken(n + 2, "<|user|>", true), AddedToken(n + 3, "<think>", false)}},
          {"pre_tokenizer", step},
          {"decoder", step},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

TokenizerSource ByteLevelSource() {
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kHuggingFaceJson;
  source.tokenizer_json = ByteLevelJson().dump();
  source.bos_token = "<|start|>";
  source.eos_token = "<|end|>";
  return source;
}

TokenizerSource SentencePieceSource() {
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kGguf;
  source.gguf_model = "llama";
  source.gguf_pre = "default";
  const auto add = [&](std::string token, float score, int32_t type) {
    source.tokens.push_back(std::move(token));
    source.scores.push_back(score);
    source.token_types.push_back(type);
  };
  add("<unk>", 0, 2);
  add("<s>", 0, 3);
  add("</s>", 0, 3);
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name, 0, 6);
  }
  float score = 0;
  for (const char* piece : {"he", "ll", "hell", "hello", "▁hello", "▁w", "or", "▁wor", "▁▁"}) {
    add(piece, --score, 1);
  }
  for (const char* piece : {"▁", "h", "e", "l", "o", "w", "r", "d", "s", "<", ">", "/", "é"}) {
    add(piece, --score, 1);
  }
  source.bos = 1;
  source.eos = 2;
  source.unk = 0;
  source.add_bos = true;
  return source;
}

TokenizerSource ByteLevelGgufSource(std::string_view pre) {
  TokenizerSource source;
  source.kind = TokenizerSource::Kind::kGguf;
  source.gguf_model = "gpt2";
  source.gguf_pre = pre;
  source.tokens = ByteLevelTokens();
  source.token_types.assign(source.tokens.size(), 1);
  for (const auto& [left, right] : kMerges) {
    source.merges.push_back(std::string(left) + " " + right);
  }
  source.tokens.push_back("<|end|>");
  source.token_types.push_back(3);
  source.bos = source.eos = static_cast<int32_t>(source.tokens.size()) - 1;
  return source;
}

std::shared_ptr<const Tokenizer> Make(const TokenizerSource& source) {
  auto tokenizer = MakeTokenizer(source);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

int32_t ControlId(const Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.Encode(text, /*add_special=*/false, /*parse_special=*/true);
  const bool one = ids.ok() && ids->size() == 1 && tokenizer.IsSpecial(ids->front());
  EXPECT_TRUE(one) << text;
  return one ? ids->front() : -1;
}

std::string RandomText(uint32_t seed, size_t characters, const std::vector<std::string>& specials) {
  std::mt19937 random(seed);
  constexpr std::array<std::pair<uint32_t, uint32_t>, 6> kRanges = {
      {{' ', '~'}, {'a', 'z'}, {0xA0, 0x24F}, {0x4E00, 0x4E80}, {0x1F600, 0x1F640}, {'\t', '\n'}}};
  std::string text;
  for (size_t i = 0; i < characters; ++i) {
    const auto [first, last] = kRanges[random() % kRanges.size()];
    text += Utf8(first + random() % (last - first + 1));
    if (!specials.empty() && random() % 8 == 0) text += specials[random() % specials.size()];
  }
  return text;
}

}  // namespace babai::testing
