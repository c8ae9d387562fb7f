// The vocabulary that all tiny models share.
#pragma once

#include <string>
#include <vector>

namespace babai {

inline constexpr int kTinySpecials = 3;  // <|endoftext|>, <|im_start|>, <|im_end|>

struct TinyVocabulary {
  std::vector<std::string> tokens;  // by id
  std::vector<std::string> merges;  // "a b", best first
};
const TinyVocabulary& TinyTokens();

extern const char kTinyChatTemplate[];

}  // namespace babai
