#include "server/engine/stop_text.h"

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace babai {
namespace {

struct Result {
  std::string text, matched;
  bool operator==(const Result&) const = default;
};

// Pushes `text` cut at `borders`, as the scheduler does.
Result Scan(const std::vector<std::string>& stops, bool include,
            const std::vector<std::string>& pieces) {
  StopText stop_text(stops, include);
  Result result;
  for (const std::string& piece : pieces) {
    const StopText::Piece got = stop_text.Push(piece);
    result.text += got.text;
    if (!got.matched.empty()) return {result.text, got.matched};
  }
  result.text += stop_text.Flush();
  return result;
}

TEST(StopTextTest, FindsAStringAcrossPieces) {
  EXPECT_EQ(Scan({"STOP"}, false, {"one S", "T", "OP two"}), (Result{"one ", "STOP"}));
  EXPECT_EQ(Scan({"STOP"}, true, {"one S", "T", "OP two"}), (Result{"one STOP", "STOP"}));
}

TEST(StopTextTest, SendsWhatTurnedOutNotToBeOne) {
  EXPECT_EQ(Scan({"STOP"}, false, {"one S", "T", "ART STO"}), (Result{"one START STO", ""}));
}

TEST(StopTextTest, HoldsBackOnlyWhatMayBeAStart) {
  StopText stop_text({"abc", "xab"}, false);
  EXPECT_EQ(stop_text.Push("hello xa").text, "hello ");
  EXPECT_EQ(stop_text.Push("-").text, "xa-");
}

TEST(StopTextTest, FirstCompleteWinsAndThenTheLongest) {
  EXPECT_EQ(Scan({"abcd", "bc"}, false, {"xabcd"}), (Result{"xa", "bc"}));
  EXPECT_EQ(Scan({"bc", "abc"}, false, {"xabcd"}), (Result{"x", "abc"}));
}

TEST(StopTextTest, OverlappingStartsAreFound) {
  EXPECT_EQ(Scan({"aab"}, false, {"a", "a", "a", "b"}), (Result{"a", "aab"}));
}

// Over a two-letter alphabet everything overlaps with everything.
TEST(StopTextTest, DoesNotDependOnTheCuts) {
  std::mt19937 random(5);
  const auto letters = [&](int n) {
    std::string s;
    for (int i = 0; i < n; ++i) s += "ab"[random() % 2];
    return s;
  };
  for (int trial = 0; trial < 2000; ++trial) {
    const std::vector<std::string> stops = {letters(2 + random() % 4), letters(3 + random() % 4)};
    const std::string text = letters(1 + random() % 12);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random() % 3;
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    EXPECT_EQ(Scan(stops, false, pieces), Scan(stops, false, {text})) << text;
  }
}

}  // namespace
}  // namespace babai
