// Reads a GGUF header front to back. Every length is checked against what is left of the file
// before anything is allocated. The first error sticks; reads after it return zeros, so callers
// check once in a while and before they use what they read.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "server/model/input_file.h"
#include "server/model/refusal.h"

namespace babai {

class GgufCursor {
 public:
  explicit GgufCursor(const InputFile& file) : file_(file) {}

  template <typename T>
  T Scalar() {
    T value{};
    Copy(reinterpret_cast<char*>(&value), sizeof(value));
    return value;
  }

  // u64 length and that many bytes, at most `max_bytes`.
  std::string String(uint64_t max_bytes) {
    const auto length = Scalar<uint64_t>();
    if (!ok()) return {};
    if (length > max_bytes || length > remaining()) {
      Fail("a string of " + std::to_string(length) + " bytes at byte " + std::to_string(position_));
      return {};
    }
    std::string text(length, '\0');
    Copy(text.data(), length);
    return text;
  }

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return file_.size() - position_; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  void Fail(std::string_view message) {
    if (ok()) status_ = BadFile(file_.name(), "header holds " + std::string(message));
  }
  void Fail(absl::Status status) {
    if (ok()) status_ = std::move(status);
  }

 private:
  static constexpr size_t kWindow = 1 << 20;

  void Copy(char* out, uint64_t bytes) {
    while (ok() && bytes > 0) {
      if (next_ == window_.size() && !Refill()) return;
      const size_t part = std::min<uint64_t>(bytes, window_.size() - next_);
      std::memcpy(out, window_.data() + next_, part);
      next_ += part, position_ += part, out += part, bytes -= part;
    }
  }

  bool Refill() {
    if (remaining() == 0) {
      Fail(BadFile(file_.name(), "ends in the middle of the header"));
      return false;
    }
    window_.resize(std::min<uint64_t>(kWindow, remaining()));
    next_ = 0;
    Fail(file_.ReadAt(position_, absl::MakeSpan(window_)));
    return ok();
  }

  const InputFile& file_;
  std::vector<char> window_;  // file bytes that end at position_ + (window_.size() - next_)
  size_t next_ = 0;
  uint64_t position_ = 0;
  absl::Status status_;
};

}  // namespace babai
