#include "kernels/formats/packed_int.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/formats/bit_stream.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/layout_checks.h"

namespace babai {
namespace {

bool GoodBits(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

int64_t ZeroRowBytes(int64_t groups, int bits) { return StreamBytes(groups, bits, 1); }

// The byte lengths of a matrix's three buffers.
struct Lengths {
  int64_t codes, scales, zeros;
};

absl::StatusOr<Lengths> CheckShape(int64_t rows, int64_t cols, int64_t group, int bits) {
  if (auto s = CheckDimensions(rows, cols); !s.ok()) return s;
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
  const int64_t row_bytes = CodeRowBytes(cols, bits);
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
    packed.zeros = PackStreams(zeros, rows, want->scales / rows, bits, want->zeros / rows);
  }
  packed.codes = PackStreams(codes, rows, cols, bits, want->codes / rows);
  packed.scales.assign(scales.begin(), scales.end());
  packed.rows = rows;
  packed.cols = cols;
  packed.group = std::min(group, cols);
  packed.bits = bits;
  return packed;
}

uint32_t CodeAt(const PackedIntView& w, int64_t row, int64_t col) {
  return StreamAt(w.codes.data() + row * CodeRowBytes(w.cols, w.bits), col, w.bits);
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
  UnpackStream(w.codes.data() + row * CodeRowBytes(w.cols, w.bits), w.cols, w.bits, out);
}

void DecodeRows(const PackedIntView& w, int64_t row_begin, int64_t row_end, float* out) {
  std::vector<uint8_t> codes(w.cols);
  for (int64_t r = row_begin; r < row_end; ++r, out += w.cols) DecodeRow(w, r, codes.data(), out);
}

}  // namespace babai
