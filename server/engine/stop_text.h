// Finds stop strings in text that arrives in pieces. Text that may still turn out to be the start
// of a stop string is held back, so no part of one is ever sent.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace babai {

class StopText {
 public:
  // No stop string is empty. `include` keeps a matched stop string in the text.
  StopText(std::vector<std::string> stops, bool include);

  struct Piece {
    std::string text;     // certain now
    std::string matched;  // the stop string that ended the text; empty: none yet
  };
  // The match is the one that is complete first, the longest of several that end there: it does not
  // depend on how the text was cut. After a match nothing more may be pushed.
  Piece Push(std::string_view text);
  std::string Flush();  // what was held back, once the text has ended without a match

 private:
  size_t HeldBack() const;

  std::vector<std::string> stops_;
  bool include_;
  std::string pending_;
};

}  // namespace babai
