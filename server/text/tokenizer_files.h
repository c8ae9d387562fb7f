// The files of a saved tokenizer, named as Hugging Face names them:
//
//   tokenizer.json          the tokenizer, whatever it was made from
//   tokenizer_config.json   {"bos_token": ..., "eos_token": ...}
//   chat_template.jinja     absent when the model has none
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace babai {

// What the chat template needs beside the messages; any of them may be empty.
struct ChatFiles {
  std::string chat_template;
  std::string bos_token, eos_token;
};

struct TokenizerFiles {
  std::string tokenizer_json;
  ChatFiles chat;
};

// Writes into `dir`, which exists. A template left from before is removed when there is none now.
// Unavailable or ResourceExhausted (IO_ERROR, OUT_OF_DISK): a file could not be written.
absl::Status WriteTokenizerFiles(const std::filesystem::path& dir, std::string_view tokenizer_json,
                                 const ChatFiles& chat);

// NotFound INVALID_TOKENIZER: no tokenizer.json. InvalidArgument INVALID_TOKENIZER: a file is too
// large or is not what it should be.
absl::StatusOr<TokenizerFiles> ReadTokenizerFiles(const std::filesystem::path& dir);

}  // namespace babai
