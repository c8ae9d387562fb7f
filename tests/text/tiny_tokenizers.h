// Small generated tokenizers of the two families that models use.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nlohmann/json.hpp"
#include "server/text/tokenizer.h"

namespace babai::testing {

// Byte-level BPE as Hugging Face writes it: a token for each byte, the merges of some English
// words, the control tokens <|start|>, <|end|> and <|user|>, and the plain added token <think>.
nlohmann::json ByteLevelJson();
TokenizerSource ByteLevelSource();

// A SentencePiece vocabulary as GGUF holds it: <unk> <s> </s>, 256 byte tokens, a few pieces.
TokenizerSource SentencePieceSource();

// A byte-level vocabulary as GGUF holds it; <|end|> (control) is its last token.
TokenizerSource ByteLevelGgufSource(std::string_view pre);

// Fails the test when there is none.
std::shared_ptr<const Tokenizer> Make(const TokenizerSource& source);

// The id of a control token by its text.
int32_t ControlId(const Tokenizer& tokenizer, std::string_view text);

// Text of 1- to 4-byte characters, from a fixed seed; `specials` are strewn in.
std::string RandomText(uint32_t seed, size_t characters,
                       const std::vector<std::string>& specials = {});

}  // namespace babai::testing
