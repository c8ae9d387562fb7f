// Gathers TokenizerSource from a Hugging Face folder's small files or a GGUF's metadata.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "server/model/checkpoint.h"
#include "server/model/gguf.h"

namespace babai {

// The files' texts; empty: there is no such file.
struct HfTokenizerFiles {
  std::string tokenizer;           // tokenizer.json
  std::string tokenizer_config;    // tokenizer_config.json
  std::string special_tokens_map;  // special_tokens_map.json
  std::string chat_template;       // chat_template.jinja
};

// Without tokenizer.json the kind is kNone, which is no error here.
absl::StatusOr<TokenizerSource> ReadHfTokenizer(HfTokenizerFiles files);

absl::StatusOr<TokenizerSource> ReadGgufTokenizer(const GgufHeader& header,
                                                  const std::string& file);

}  // namespace babai
