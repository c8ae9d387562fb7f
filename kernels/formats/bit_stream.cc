#include "kernels/formats/bit_stream.h"

#include <cstring>
#include <limits>

namespace babai {
namespace {

void PutStream(uint8_t* stream, int64_t index, int bits, uint32_t value) {
  const int64_t bit = index * bits;
  const int shift = static_cast<int>(bit & 7);
  const uint32_t word = value << shift;
  stream[bit >> 3] |= static_cast<uint8_t>(word);
  if (shift + bits > 8) stream[(bit >> 3) + 1] |= static_cast<uint8_t>(word >> 8);
}

// Eight at a time: eight values are kBits whole bytes.
template <int kBits>
void Unpack(const uint8_t* stream, int64_t count, uint8_t* out) {
  int64_t c = 0;
  for (; c + 8 <= count; c += 8) {
    uint64_t word = 0;
    std::memcpy(&word, stream + c * kBits / 8, kBits);
    for (int i = 0; i < 8; ++i) {
      out[c + i] = static_cast<uint8_t>((word >> (i * kBits)) & ((1u << kBits) - 1));
    }
  }
  for (; c < count; ++c) out[c] = static_cast<uint8_t>(StreamAt(stream, c, kBits));
}

}  // namespace

int64_t StreamBytes(int64_t count, int bits, int64_t unit) {
  const int64_t total = ProductOrMinusOne(count, bits);
  if (total < 0 || total > std::numeric_limits<int64_t>::max() - 8 * unit) return -1;
  return (total + 8 * unit - 1) / (8 * unit) * unit;
}

std::vector<uint8_t> PackStreams(absl::Span<const uint8_t> values, int64_t rows, int64_t count,
                                 int bits, int64_t row_bytes) {
  std::vector<uint8_t> out(rows * row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < count; ++c) {
      PutStream(&out[r * row_bytes], c, bits, values[r * count + c]);
    }
  }
  return out;
}

void UnpackStream(const uint8_t* stream, int64_t count, int bits, uint8_t* out) {
  switch (bits) {
    case 2:
      return Unpack<2>(stream, count, out);
    case 3:
      return Unpack<3>(stream, count, out);
    case 4:
      return Unpack<4>(stream, count, out);
    default:
      std::memcpy(out, stream, count);
  }
}

}  // namespace babai
