#include "tests/model/tiny_tokenizer.h"

#include <nlohmann/json.hpp>

#include "tests/model/checkpoint_builder.h"

namespace babai {
namespace {

using Json = nlohmann::json;

std::string Utf8(int code_point) {  // below U+0800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

// GPT-2's alphabet: printable bytes stand for themselves, the other 68 for U+0100 and up.
std::string ByteSymbol(int byte) {
  const auto printable = [](int b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  };
  if (printable(byte)) return Utf8(byte);
  int rank = 0;
  for (int b = 0; b < byte; ++b) rank += !printable(b);
  return Utf8(0x100 + rank);
}

TinyVocabulary MakeVocabulary() {
  TinyVocabulary vocabulary;
  vocabulary.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int byte = 0; byte < 256; ++byte) vocabulary.tokens.push_back(ByteSymbol(byte));
  const std::string space = ByteSymbol(' ');
  const std::pair<std::string, std::string> merges[] = {
      {space, "t"}, {"h", "e"},          {"i", "n"},          {space, "a"}, {"r", "e"},
      {"o", "n"},   {"e", "r"},          {"n", "d"},          {"a", "t"},   {space, "s"},
      {space, "w"}, {"o", "u"},          {"in", "g"},         {"e", "n"},   {space, "c"},
      {space, "b"}, {space + "t", "he"}, {space + "a", "nd"},
  };
  for (const auto& [left, right] : merges) {
    vocabulary.merges.push_back(left + " " + right);
    vocabulary.tokens.push_back(left + right);
  }
  return vocabulary;
}

}  // namespace

const char kTinyChatTemplate[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\\n' }}{% endif %}";

const TinyVocabulary& TinyTokens() {
  static const TinyVocabulary vocabulary = MakeVocabulary();
  return vocabulary;
}

std::string TinyTokenizerJson() {
  const TinyVocabulary& vocabulary = TinyTokens();
  Json added = Json::array(), vocab = Json::object();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    vocab[vocabulary.tokens[id]] = id;
    if (id >= kTinySpecials) continue;
    added.push_back({{"id", id},
                     {"content", vocabulary.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", added},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false},
                {"vocab", vocab},
                {"merges", vocabulary.merges}}}}
      .dump();
}

}  // namespace babai
