#include "server/text/tokenizer.h"

#include <utility>

#include "absl/status/status.h"
#include "server/reason/reason.h"
#include "server/text/ffi/babai_text.h"
#include "server/text/ffi_call.h"
#include "server/text/tokenizer_files.h"

namespace babai {
namespace {

struct Free {
  void operator()(babai_text_tokenizer* p) const { babai_text_tokenizer_free(p); }
  void operator()(babai_text_template* p) const { babai_text_template_free(p); }
  void operator()(babai_text_stream* p) const { babai_text_stream_free(p); }
};
using TokenizerHandle = std::unique_ptr<babai_text_tokenizer, Free>;
using TemplateHandle = std::unique_ptr<babai_text_template, Free>;
using StreamHandle = std::unique_ptr<babai_text_stream, Free>;

std::vector<babai_text_slice> Slices(const std::vector<std::string>& texts) {
  std::vector<babai_text_slice> slices;
  slices.reserve(texts.size());
  for (const std::string& text : texts) slices.push_back(Slice(text));
  return slices;
}

class RustDetokenizer final : public Detokenizer {
 public:
  // `stream` may be null: then every id is refused.
  explicit RustDetokenizer(StreamHandle stream) : stream_(std::move(stream)) {}

  absl::StatusOr<std::string> Push(int32_t id) override {
    if (stream_ == nullptr) {
      return Refuse(absl::StatusCode::kInternal, reason::kInternal, "", "no detokenizer was made");
    }
    babai_text_bytes bytes = {};
    const babai_text_code code = babai_text_stream_push(stream_.get(), id, &bytes);
    return Take(code, "ids", bytes);
  }

  std::string Flush() override {
    babai_text_bytes bytes = {};
    if (stream_ == nullptr) return "";
    const babai_text_code code = babai_text_stream_flush(stream_.get(), &bytes);
    return Take(code, "", bytes).value_or("");
  }

 private:
  StreamHandle stream_;
};

// A chat as the C ABI borrows it.
class BorrowedChat {
 public:
  BorrowedChat(const std::vector<ChatMessage>& messages, const ChatFiles& files,
               bool add_generation_prompt) {
    messages_.reserve(messages.size());
    for (const ChatMessage& m : messages) messages_.push_back({Slice(m.role), Slice(m.content)});
    chat_ = {messages_.data(), messages_.size(), Slice(files.bos_token), Slice(files.eos_token),
             add_generation_prompt};
  }
  BorrowedChat(const BorrowedChat&) = delete;
  BorrowedChat& operator=(const BorrowedChat&) = delete;

  const babai_text_chat* get() const { return &chat_; }

 private:
  std::vector<babai_text_message> messages_;
  babai_text_chat chat_;
};

class RustTokenizer final : public Tokenizer {
 public:
  RustTokenizer(TokenizerHandle tokenizer, TemplateHandle chat_template, ChatFiles files)
      : tokenizer_(std::move(tokenizer)),
        template_(std::move(chat_template)),
        files_(std::move(files)),
        vocab_size_(static_cast<int64_t>(babai_text_vocab_size(tokenizer_.get()))) {}

  int64_t vocab_size() const override { return vocab_size_; }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                              bool parse_special) const override {
    babai_text_ids ids = {};
    const babai_text_code code =
        babai_text_encode(tokenizer_.get(), Slice(text), add_special, parse_special, &ids);
    return Take(code, "text", ids);
  }

  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                     bool skip_special) const override {
    babai_text_bytes bytes = {};
    const babai_text_code code =
        babai_text_decode(tokenizer_.get(), ids.data(), ids.size(), skip_special, &bytes);
    return Take(code, "ids", bytes);
  }

  std::unique_ptr<Detokenizer> NewDetokenizer(bool skip_special) const override {
    babai_text_stream* stream = nullptr;
    babai_text_stream_new(tokenizer_.get(), skip_special, &stream);
    return std::make_unique<RustDetokenizer>(StreamHandle(stream));
  }

  bool has_chat_template() const override { return template_ != nullptr; }

  absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<ChatMessage>& messages,
                                                  bool add_generation_prompt) const override {
    if (template_ == nullptr) return NoTemplate();
    const BorrowedChat chat(messages, files_, add_generation_prompt);
    babai_text_ids ids = {};
    const babai_text_code code =
        babai_text_chat_encode(template_.get(), tokenizer_.get(), chat.get(), &ids);
    return Take(code, "messages", ids);
  }

  absl::StatusOr<std::string> RenderChat(const std::vector<ChatMessage>& messages,
                                         bool add_generation_prompt) const override {
    if (template_ == nullptr) return NoTemplate();
    const BorrowedChat chat(messages, files_, add_generation_prompt);
    babai_text_bytes bytes = {};
    const babai_text_code code =
        babai_text_chat_render(template_.get(), tokenizer_.get(), chat.get(), &bytes);
    return Take(code, "messages", bytes);
  }

  bool IsSpecial(int32_t id) const override { return babai_text_is_control(tokenizer_.get(), id); }

  absl::Status Save(const std::filesystem::path& dir) const override {
    babai_text_bytes bytes = {};
    const babai_text_code code = babai_text_to_json(tokenizer_.get(), &bytes);
    const absl::StatusOr<std::string> json = Take(code, "tokenizer.json", bytes);
    if (!json.ok()) return json.status();
    return WriteTokenizerFiles(dir, *json, files_);
  }

 private:
  static absl::Status NoTemplate() {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kTemplateFailed, "messages",
                  "the model has no chat template; send the prompt as text");
  }

  const TokenizerHandle tokenizer_;
  const TemplateHandle template_;  // null: the model has none
  const ChatFiles files_;
  const int64_t vocab_size_;
};

absl::StatusOr<TokenizerHandle> FromJson(std::string_view json) {
  babai_text_tokenizer* tokenizer = nullptr;
  const babai_text_code code = babai_text_tokenizer_from_json(Slice(json), &tokenizer);
  if (code != BABAI_TEXT_OK) return FfiStatus(code, "tokenizer.json");
  return TokenizerHandle(tokenizer);
}

absl::StatusOr<TokenizerHandle> FromGguf(const TokenizerSource& source) {
  const std::vector<babai_text_slice> tokens = Slices(source.tokens);
  const std::vector<babai_text_slice> merges = Slices(source.merges);
  babai_text_gguf gguf = {};
  gguf.model = Slice(source.gguf_model);
  gguf.pre = Slice(source.gguf_pre);
  gguf.tokens = tokens.data();
  gguf.num_tokens = tokens.size();
  gguf.scores = source.scores.data();
  gguf.num_scores = source.scores.size();
  gguf.types = source.token_types.data();
  gguf.num_types = source.token_types.size();
  gguf.merges = merges.data();
  gguf.num_merges = merges.size();
  gguf.bos = source.bos;
  gguf.eos = source.eos;
  gguf.unk = source.unk;
  gguf.add_bos = source.add_bos;
  gguf.add_eos = source.add_eos;
  gguf.add_space_prefix = source.add_space_prefix;
  babai_text_tokenizer* tokenizer = nullptr;
  const babai_text_code code = babai_text_tokenizer_from_gguf(&gguf, &tokenizer);
  if (code != BABAI_TEXT_OK) return FfiStatus(code, "tokenizer.ggml");
  return TokenizerHandle(tokenizer);
}

absl::StatusOr<TokenizerHandle> FromSource(const TokenizerSource& source) {
  switch (source.kind) {
    case TokenizerSource::Kind::kHuggingFaceJson:
      return FromJson(source.tokenizer_json);
    case TokenizerSource::Kind::kGguf:
      return FromGguf(source);
    case TokenizerSource::Kind::kNone:
      break;
  }
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidTokenizer, "tokenizer.json",
                "the model comes without a tokenizer; add its tokenizer.json");
}

// `given`, or the text of token `id` where a GGUF file names only that.
std::string TokenText(const TokenizerSource& source, const std::string& given, int32_t id) {
  const bool named = id >= 0 && static_cast<size_t>(id) < source.tokens.size();
  return given.empty() && named ? source.tokens[static_cast<size_t>(id)] : given;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Assemble(TokenizerHandle tokenizer,
                                                          ChatFiles files) {
  TemplateHandle chat_template;
  if (!files.chat_template.empty()) {
    babai_text_template* made = nullptr;
    const babai_text_code code = babai_text_template_new(Slice(files.chat_template), &made);
    if (code != BABAI_TEXT_OK) return FfiStatus(code, "chat_template");
    chat_template.reset(made);
  }
  return std::make_shared<const RustTokenizer>(std::move(tokenizer), std::move(chat_template),
                                               std::move(files));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(const TokenizerSource& source) {
  absl::StatusOr<TokenizerHandle> tokenizer = FromSource(source);
  if (!tokenizer.ok()) return tokenizer.status();
  ChatFiles files = {source.chat_template, TokenText(source, source.bos_token, source.bos),
                     TokenText(source, source.eos_token, source.eos)};
  return Assemble(*std::move(tokenizer), std::move(files));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const std::filesystem::path& dir) {
  absl::StatusOr<TokenizerFiles> files = ReadTokenizerFiles(dir);
  if (!files.ok()) return files.status();
  absl::StatusOr<TokenizerHandle> tokenizer = FromJson(files->tokenizer_json);
  if (!tokenizer.ok()) return tokenizer.status();
  return Assemble(*std::move(tokenizer), std::move(files->chat));
}

}  // namespace babai
