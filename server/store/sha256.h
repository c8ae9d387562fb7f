// SHA-256 (FIPS 180-4) by OpenSSL, which uses the processor's instructions where it has them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace babai {

// Feed bytes, then read the digest once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(absl::Span<const uint8_t> bytes);
  // A field of a key: its length (8 bytes, little-endian), then its bytes, so that no two lists of
  // fields spell the same stream.
  void AddField(std::string_view field);
  std::string HexDigest();  // 64 lower-case digits; call once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(absl::Span<const uint8_t> bytes);

}  // namespace babai
