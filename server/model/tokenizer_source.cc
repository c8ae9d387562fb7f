#include "server/model/tokenizer_source.h"

#include <limits>
#include <utility>

#include "server/model/refusal.h"
#include "server/model/strict_json.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::json;

constexpr char kTokenizer[] = "tokenizer.json", kTokenizerConfig[] = "tokenizer_config.json",
               kSpecialTokens[] = "special_tokens_map.json";

absl::StatusOr<Json> ParseOptional(const std::string& text, const char* file,
                                   const JsonLimits& limits = {}) {
  if (text.empty()) return Json(Json::object());
  return ParseJsonObject(text, file, limits);
}

// A token is a string, or an object around one (AddedToken).
std::string TokenText(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) return {};
  const Json& value = found->is_object() ? found->value("content", Json()) : *found;
  return value.is_string() ? value.get<std::string>() : std::string();
}

// A template, or a list of named ones, of which "default" answers a plain chat.
std::string TemplateText(const Json& json) {
  const auto found = json.find("chat_template");
  if (found == json.end()) return {};
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return {};
  std::string first;
  for (const Json& item : *found) {
    if (!item.is_object()) continue;
    const std::string text = TokenText(item, "template");
    if (TokenText(item, "name") == "default") return text;
    if (first.empty()) first = text;
  }
  return first;
}

int32_t AddedTokenId(const Json& tokenizer, const std::string& content) {
  const auto list = tokenizer.find("added_tokens");
  if (list == tokenizer.end() || !list->is_array() || content.empty()) return -1;
  for (const Json& token : *list) {
    if (!token.is_object() || TokenText(token, "content") != content) continue;
    const auto id = token.find("id");
    if (id == token.end() || !id->is_number_unsigned()) return -1;
    const auto value = id->get<uint64_t>();
    return value <= std::numeric_limits<int32_t>::max() ? static_cast<int32_t>(value) : -1;
  }
  return -1;
}

// Whether a post-processor's template for one text starts or ends with a special token.
struct Affixes {
  bool first = false, last = false;
};
Affixes ReadAffixes(const Json& processor) {
  if (!processor.is_object()) return {};
  Affixes affixes;
  if (const auto parts = processor.find("processors");
      parts != processor.end() && parts->is_array()) {
    for (const Json& part : *parts) {
      const auto single = part.is_object() ? part.find("single") : part.end();
      if (!part.is_object() || single == part.end()) continue;
      affixes = ReadAffixes(part);
    }
    return affixes;
  }
  const auto single = processor.find("single");
  if (single == processor.end() || !single->is_array() || single->empty()) return {};
  affixes.first = single->front().is_object() && single->front().contains("SpecialToken");
  affixes.last = single->back().is_object() && single->back().contains("SpecialToken");
  return affixes;
}

absl::Status BadTokenizer(const std::string& file, std::string_view message) {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidTokenizer, file, message);
}

}  // namespace

absl::StatusOr<TokenizerSource> ReadHfTokenizer(HfTokenizerFiles files) {
  // The vocabulary itself is server/text's business; here only what stands around it.
  const absl::StatusOr<Json> tokenizer =
      ParseOptional(files.tokenizer, kTokenizer, {.values = 1 << 24, .dropped = {"model"}});
  if (!tokenizer.ok()) return tokenizer.status();
  const absl::StatusOr<Json> config = ParseOptional(files.tokenizer_config, kTokenizerConfig);
  if (!config.ok()) return config.status();
  const absl::StatusOr<Json> special = ParseOptional(files.special_tokens_map, kSpecialTokens);
  if (!special.ok()) return special.status();

  TokenizerSource source;
  if (!files.tokenizer.empty()) source.kind = TokenizerSource::Kind::kHuggingFaceJson;
  source.tokenizer_json = std::move(files.tokenizer);
  source.chat_template =
      files.chat_template.empty() ? TemplateText(*config) : std::move(files.chat_template);
  const auto token = [&](const char* key) {
    const std::string text = TokenText(*config, key);
    return text.empty() ? TokenText(*special, key) : text;
  };
  source.bos_token = token("bos_token");
  source.eos_token = token("eos_token");
  source.bos = AddedTokenId(*tokenizer, source.bos_token);
  source.eos = AddedTokenId(*tokenizer, source.eos_token);
  source.unk = AddedTokenId(*tokenizer, token("unk_token"));

  // An explicit switch wins over the template, as it does when transformers loads the pair.
  const Affixes affixes = ReadAffixes(tokenizer->value("post_processor", Json()));
  FieldReader in(*config, kTokenizerConfig);
  source.add_bos = in.Bool("add_bos_token", affixes.first);
  source.add_eos = in.Bool("add_eos_token", affixes.last);
  if (!in.status().ok()) return in.status();
  return source;
}

absl::StatusOr<TokenizerSource> ReadGgufTokenizer(const GgufHeader& header,
                                                  const std::string& file) {
  GgufFields in(header, file);
  TokenizerSource source;
  const auto* tokens = in.List<std::string>("tokenizer.ggml.tokens");
  if (tokens == nullptr)
    return in.status().ok() ? absl::StatusOr<TokenizerSource>(source) : in.status();
  source.kind = TokenizerSource::Kind::kGguf;
  source.tokens = *tokens;
  source.gguf_model = in.String("tokenizer.ggml.model");
  source.gguf_pre = in.String("tokenizer.ggml.pre", "");
  source.chat_template = in.String("tokenizer.chat_template", "");
  if (const auto* scores = in.List<double>("tokenizer.ggml.scores")) {
    source.scores.assign(scores->begin(), scores->end());
  }
  if (const auto* types = in.List<int64_t>("tokenizer.ggml.token_type")) {
    source.token_types.assign(types->begin(), types->end());
  }
  if (const auto* merges = in.List<std::string>("tokenizer.ggml.merges")) source.merges = *merges;

  // Where the file is silent: SentencePiece models start with BOS, as does Llama 3's vocabulary.
  const bool llama3 = source.gguf_pre == "llama-bpe" || source.gguf_pre == "llama3" ||
                      source.gguf_pre == "llama-v3";
  source.add_bos = in.Bool("tokenizer.ggml.add_bos_token", source.gguf_model == "llama" || llama3);
  source.add_eos = in.Bool("tokenizer.ggml.add_eos_token", false);
  source.add_space_prefix = in.Bool("tokenizer.ggml.add_space_prefix", true);
  const auto id = [&](std::string_view key) {
    const int64_t value =
        in.Int(std::string("tokenizer.ggml.") + std::string(key), 0, 0xffffffffLL, -1);
    return value < static_cast<int64_t>(tokens->size()) ? static_cast<int32_t>(value) : -1;
  };
  source.bos = id("bos_token_id");
  source.eos = id("eos_token_id");
  source.unk = id("unknown_token_id");
  if (!in.status().ok()) return in.status();
  if (source.bos >= 0) source.bos_token = source.tokens[source.bos];
  if (source.eos >= 0) source.eos_token = source.tokens[source.eos];
  const auto fits = [&](size_t size) { return size == 0 || size == source.tokens.size(); };
  if (!fits(source.scores.size()) || !fits(source.token_types.size())) {
    return BadTokenizer(file, "tokenizer.ggml.scores or token_type has another length than tokens");
  }
  return source;
}

}  // namespace babai
