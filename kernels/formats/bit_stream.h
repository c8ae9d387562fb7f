// Dense little-endian bit streams, one a row: what F1 and F2 store their codes in (packed_int.h).
// Internal to kernels/formats.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace babai {

// a * b; -1 where that overflows.
inline int64_t ProductOrMinusOne(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

// Bytes of `count` values of `bits` bits, rounded up to `unit` bytes; -1 on overflow.
int64_t StreamBytes(int64_t count, int bits, int64_t unit);

// Bytes of a row of codes.
inline int64_t CodeRowBytes(int64_t cols, int bits) { return StreamBytes(cols, bits, 4); }

// Value `index` of a stream. Values never span more than two bytes: bits <= 8.
inline uint32_t StreamAt(const uint8_t* stream, int64_t index, int bits) {
  const int64_t bit = index * bits;
  const int shift = static_cast<int>(bit & 7);
  uint32_t word = stream[bit >> 3];
  if (shift + bits > 8) word |= static_cast<uint32_t>(stream[(bit >> 3) + 1]) << 8;
  return (word >> shift) & ((1u << bits) - 1);
}

// Packs rows of `count` values each, which must fit `bits` bits.
std::vector<uint8_t> PackStreams(absl::Span<const uint8_t> values, int64_t rows, int64_t count,
                                 int bits, int64_t row_bytes);

// The first `count` values of a stream of 2, 3, 4 or 8 bits, one a byte.
void UnpackStream(const uint8_t* stream, int64_t count, int bits, uint8_t* out);

}  // namespace babai
