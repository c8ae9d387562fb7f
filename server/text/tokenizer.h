// Text <-> token ids, chat templates and streaming detokenization: thin C++ over server/text/ffi, a
// Rust crate around Hugging Face tokenizers and minijinja. Exact by construction.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/checkpoint.h"

namespace babai {

struct ChatMessage {
  std::string role;
  std::string content;
};

// Turns a growing list of ids into text, never emitting half a UTF-8 character. One per sequence.
class Detokenizer {
 public:
  virtual ~Detokenizer() = default;
  // The text that became certain with this id; often empty for multi-token characters.
  virtual absl::StatusOr<std::string> Push(int32_t id) = 0;
  // What is left at the end (an incomplete tail becomes U+FFFD).
  virtual std::string Flush() = 0;
};

// Thread-safe after construction.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual int64_t vocab_size() const = 0;  // ids are in [0, vocab_size)

  // Plain text to ids. With `parse_special` false, text that spells a control token stays text.
  // With `add_special`, BOS/EOS are added as the model's own tokenizer does.
  // InvalidArgument: the text is not valid UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                                      bool parse_special) const = 0;
  // InvalidArgument: an id outside the vocabulary.
  virtual absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids,
                                             bool skip_special) const = 0;
  virtual std::unique_ptr<Detokenizer> NewDetokenizer(bool skip_special) const = 0;

  virtual bool has_chat_template() const = 0;
  // Renders the template and encodes it. Control tokens come from the template alone: text inside a
  // message can not forge one. FailedPrecondition: the model has no template. InvalidArgument
  // TEMPLATE_FAILED: the template refused the messages (its own words).
  virtual absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<ChatMessage>& messages,
                                                          bool add_generation_prompt) const = 0;
  virtual absl::StatusOr<std::string> RenderChat(const std::vector<ChatMessage>& messages,
                                                 bool add_generation_prompt) const = 0;

  virtual bool IsSpecial(int32_t id) const = 0;

  // Writes tokenizer.json and chat_template.jinja (if any) into `dir`, enough for LoadTokenizer().
  virtual absl::Status Save(const std::filesystem::path& dir) const = 0;
};

absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(const TokenizerSource& source);

// From what Save() wrote. `bos_token`/`eos_token` are part of what Save() writes.
absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadTokenizer(const std::filesystem::path& dir);

}  // namespace babai
