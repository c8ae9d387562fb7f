#include "kernels/formats/packed_int.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"

namespace babai {
namespace {

bool GoodBits(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

bool GoodGroup(int64_t cols, int64_t group) {
  return group >= 1 && (group >= cols || cols % group == 0);
}

int64_t ProductOrMinusOne(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? -1 : product;
}

// Bytes of `count` values of `bits` bits, rounded up to `unit` bytes; -1 on overflow.
int64_t StreamBytes(int64_t count, int bits, int64_t unit) {
  const int64_t total = ProductOrMinusOne(count, bits);
  if (total < 0 || total > std::numeric_limits<int64_t>::max() - 8 * unit) return -1;
  return (total + 8 * unit - 1) / (8 * unit) * unit;
}

int64_t RowBytes(int64_t cols, int bits) { return StreamBytes(cols, bits, 4); }
int64_t ZeroRowBytes(int64_t groups, int bits) { return StreamBytes(groups, bits, 1); }

// Value `index` of a dense little-endian stream. Values never span more than two bytes.
uint32_t StreamAt(const uint8_t* stream, int64_t index, int bits) {
  const int64_t bit = index * bits;
  const int shift = static_cast<int>(bit & 7);
  uint32_t word = stream[bit >> 3];
  if (shift + bits > 8) word |= static_cast<uint32_t>(stream[(bit >> 3) + 1]) << 8;
  return (word >> shift) & ((1u << bits) - 1);
}

void PutStream(uint8_t* stream, int64_t index, int bits, uint32_t value) {
  const int64_t bit = index * bits;
  const int shift = static_cast<int>(bit & 7);
  const uint32_t word = value << shift;
  stream[bit >> 3] |= static_cast<uint8_t>(word);
  if (shift + bits > 8) stream[(bit >> 3) + 1] |= static_cast<uint8_t>(word >> 8);
}

// The byte lengths of a matrix's three buffers.
struct Lengths {
  int64_t codes, scales, zeros;
};

absl::StatusOr<Lengths> CheckShape(int64_t rows, int64_t cols, int64_t group, int bits) {
  if (rows < 1 || cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows ", rows, ", cols ", cols, ": both must be at least 1"));
  }
  if (!GoodBits(bits)) {
    return absl::InvalidArgumentError(absl::StrCat("bits ", bits, ": must be 2, 3, 4 or 8"));
  }
  if (!GoodGroup(cols, group)) {
    return absl::InvalidArgumentError(
        absl::StrCat("group ", group, ": must divide cols ", cols, " or span a whole row"));
  }
  const int64_t groups = group >= cols ? 1 : cols / group;
  Lengths want = {PackedIntCodeBytes(rows, cols, bits), ProductOrMinusOne(rows, groups),
                  PackedIntZeroBytes(rows, cols, group, bits)};
  if (want.codes < 0 || want.scales < 0 || want.zeros < 0) {
    return absl::InvalidArgumentError(absl::StrCat(rows, " x ", cols, ": too large"));
  }
  return want;
}

absl::Status CheckLength(absl::string_view what, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) == want) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " holds ", got, " values, needs ", want));
}

absl::Status CheckRange(absl::string_view what, absl::Span<const uint8_t> values, int bits) {
  const auto largest = std::max_element(values.begin(), values.end());
  if (largest == values.end() || *largest < (1 << bits)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " ", int{*largest}, " does not fit ", bits, " bits"));
}

// Packs rows of `count` values each.
std::vector<uint8_t> PackRows(absl::Span<const uint8_t> values, int64_t rows, int64_t count,
                              int bits, int64_t row_bytes) {
  std::vector<uint8_t> out(rows * row_bytes);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < count; ++c) {
      PutStream(&out[r * row_bytes], c, bits, values[r * count + c]);
    }
  }
  return out;
}

// A row's codes in order, eight at a time: eight codes are kBits whole bytes.
template <int kBits>
void UnpackCodes(const uint8_t* row, int64_t cols, uint8_t* out) {
  int64_t c = 0;
  for (; c + 8 <= cols; c += 8) {
    uint64_t word = 0;
    std::memcpy(&word, row + c * kBits / 8, kBits);
    for (int i = 0; i < 8; ++i) {
      out[c + i] = static_cast<uint8_t>((word >> (i * kBits)) & ((1u << kBits) - 1));
    }
  }
  for (; c < cols; ++c) out[c] = static_cast<uint8_t>(StreamAt(row, c, kBits));
}

void DecodeRow(const PackedIntView& w, int64_t row, uint8_t* codes, float* out) {
  UnpackRow(w, row, codes);
  const int64_t groups = w.groups();
  for (int64_t g = 0; g < groups; ++g) {
    const float scale = HalfToFloat(w.scales[row * groups + g]);
    const int zero = static_cast<int>(ZeroAt(w, row, g));
    const int64_t end = std::min(w.cols, (g + 1) * w.group);
    for (int64_t c = g * w.group; c < end; ++c)
      out[c] = scale * static_cast<float>(codes[c] - zero);
  }
}

}  // namespace

int64_t PackedIntCodeBytes(int64_t rows, int64_t cols, int bits) {
  if (rows < 1 || cols < 1 || !GoodBits(bits)) return -1;
  const int64_t row_bytes = RowBytes(cols, bits);
  return row_bytes < 0 ? -1 : ProductOrMinusOne(rows, row_bytes);
}

int64_t PackedIntZeroBytes(int64_t rows, int64_t cols, int64_t group, int bits) {
  if (rows < 1 || cols < 1 || !GoodBits(bits) || !GoodGroup(cols, group)) return -1;
  const int64_t row_bytes = ZeroRowBytes(group >= cols ? 1 : cols / group, bits);
  return row_bytes < 0 ? -1 : ProductOrMinusOne(rows, row_bytes);
}

absl::StatusOr<PackedIntView> MakePackedIntView(absl::Span<const uint8_t> codes,
                                                absl::Span<const uint16_t> scales,
                                                absl::Span<const uint8_t> zeros, int64_t rows,
                                                int64_t cols, int64_t group, int bits) {
  const absl::StatusOr<Lengths> want = CheckShape(rows, cols, group, bits);
  if (!want.ok()) return want.status();
  if (auto s = CheckLength("codes", codes.size(), want->codes); !s.ok()) return s;
  if (auto s = CheckLength("scales", scales.size(), want->scales); !s.ok()) return s;
  if (!zeros.empty()) {
    if (auto s = CheckLength("zeros", zeros.size(), want->zeros); !s.ok()) return s;
  }
  // A group longer than a row is the row: keeps groups() free of overflow.
  return PackedIntView{codes, scales, zeros, rows, cols, std::min(group, cols), bits};
}

absl::StatusOr<PackedInt> PackInt(absl::Span<const uint8_t> codes,
                                  absl::Span<const uint16_t> scales,
                                  absl::Span<const uint8_t> zeros, int64_t rows, int64_t cols,
                                  int64_t group, int bits) {
  const absl::StatusOr<Lengths> want = CheckShape(rows, cols, group, bits);
  if (!want.ok()) return want.status();
  const int64_t count = ProductOrMinusOne(rows, cols);
  if (auto s = CheckLength("codes", codes.size(), count); !s.ok()) return s;
  if (auto s = CheckLength("scales", scales.size(), want->scales); !s.ok()) return s;
  if (auto s = CheckRange("code", codes, bits); !s.ok()) return s;
  PackedInt packed;
  if (!zeros.empty()) {
    if (auto s = CheckLength("zeros", zeros.size(), want->scales); !s.ok()) return s;
    if (auto s = CheckRange("zero", zeros, bits); !s.ok()) return s;
    packed.zeros = PackRows(zeros, rows, want->scales / rows, bits, want->zeros / rows);
  }
  packed.codes = PackRows(codes, rows, cols, bits, want->codes / rows);
  packed.scales.assign(scales.begin(), scales.end());
  packed.rows = rows;
  packed.cols = cols;
  packed.group = std::min(group, cols);
  packed.bits = bits;
  return packed;
}

uint32_t CodeAt(const PackedIntView& w, int64_t row, int64_t col) {
  return StreamAt(w.codes.data() + row * RowBytes(w.cols, w.bits), col, w.bits);
}

uint32_t ZeroAt(const PackedIntView& w, int64_t row, int64_t group_index) {
  if (w.symmetric()) return 1u << (w.bits - 1);
  return StreamAt(w.zeros.data() + row * ZeroRowBytes(w.groups(), w.bits), group_index, w.bits);
}

float DecodeWeight(const PackedIntView& w, int64_t row, int64_t col) {
  const int64_t g = col / w.group;
  const float steps =
      static_cast<float>(CodeAt(w, row, col)) - static_cast<float>(ZeroAt(w, row, g));
  return HalfToFloat(w.scales[row * w.groups() + g]) * steps;
}

void UnpackRow(const PackedIntView& w, int64_t row, uint8_t* out) {
  const uint8_t* codes = w.codes.data() + row * RowBytes(w.cols, w.bits);
  switch (w.bits) {
    case 2:
      return UnpackCodes<2>(codes, w.cols, out);
    case 3:
      return UnpackCodes<3>(codes, w.cols, out);
    case 4:
      return UnpackCodes<4>(codes, w.cols, out);
    default:
      std::memcpy(out, codes, w.cols);
  }
}

void DecodeRows(const PackedIntView& w, int64_t row_begin, int64_t row_end, float* out) {
  std::vector<uint8_t> codes(w.cols);
  for (int64_t r = row_begin; r < row_end; ++r, out += w.cols) DecodeRow(w, r, codes.data(), out);
}

}  // namespace babai
