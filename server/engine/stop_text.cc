#include "server/engine/stop_text.h"

#include <algorithm>
#include <utility>

namespace babai {

StopText::StopText(std::vector<std::string> stops, bool include)
    : stops_(std::move(stops)), include_(include) {}

// Length of the longest end of the pending text that begins a stop string.
size_t StopText::HeldBack() const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    const size_t longest = std::min(stop.size() - 1, pending_.size());
    for (size_t n = longest; n > held; --n) {
      if (std::string_view(stop).substr(0, n) ==
          std::string_view(pending_).substr(pending_.size() - n)) {
        held = n;
      }
    }
  }
  return held;
}

StopText::Piece StopText::Push(std::string_view text) {
  pending_ += text;
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = pending_.find(stop);
    if (at == std::string::npos) continue;
    if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
      begin = at;
      end = at + stop.size();
    }
  }
  Piece piece;
  if (end != std::string::npos) {
    piece.matched = pending_.substr(begin, end - begin);
    piece.text = pending_.substr(0, include_ ? end : begin);
    pending_.clear();
    return piece;
  }
  const size_t certain = pending_.size() - HeldBack();
  piece.text = pending_.substr(0, certain);
  pending_.erase(0, certain);
  return piece;
}

std::string StopText::Flush() { return std::exchange(pending_, {}); }

}  // namespace babai
