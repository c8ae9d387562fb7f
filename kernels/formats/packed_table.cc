#include "kernels/formats/packed_table.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/formats/bit_stream.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/layout_checks.h"

namespace babai {
namespace {

constexpr int kMostBits = 4;

bool GoodBits(int bits) { return bits >= 2 && bits <= kMostBits; }

// Values of a row's table.
int64_t TableRow(TableKind kind, int bits) {
  return kind == TableKind::kBinary ? 1 + bits : int64_t{1} << bits;
}

// The lengths of a matrix's buffers, and the group as it is kept.
struct Layout {
  int64_t codes, scales, table, group;
};

absl::StatusOr<Layout> CheckShape(int64_t rows, int64_t cols, int64_t group, int bits,
                                  TableKind kind) {
  if (auto s = CheckDimensions(rows, cols); !s.ok()) return s;
  if (!GoodBits(bits)) {
    return absl::InvalidArgumentError(absl::StrCat("bits ", bits, ": must be 2, 3 or 4"));
  }
  const bool shared = kind == TableKind::kShared;
  if (shared && !GoodGroup(cols, group)) {
    return absl::InvalidArgumentError(
        absl::StrCat("group ", group, ": must divide cols ", cols, " or span a whole row"));
  }
  Layout want = {-1, 0, TableEntries(kind, rows, bits), shared ? std::min(group, cols) : cols};
  const int64_t row_bytes = CodeRowBytes(cols, bits);
  if (row_bytes >= 0) want.codes = ProductOrMinusOne(rows, row_bytes);
  if (shared) want.scales = ProductOrMinusOne(rows, cols / want.group);
  if (want.codes < 0 || want.scales < 0 || want.table < 0) {
    return absl::InvalidArgumentError(absl::StrCat(rows, " x ", cols, ": too large"));
  }
  return want;
}

absl::Status CheckParameters(const Layout& want, absl::Span<const uint16_t> scales,
                             absl::Span<const uint16_t> table) {
  if (auto s = CheckLength("scales", scales.size(), want.scales); !s.ok()) return s;
  if (auto s = CheckLength("table", table.size(), want.table); !s.ok()) return s;
  if (auto s = CheckFinite("scale", scales); !s.ok()) return s;
  return CheckFinite("table value", table);
}

void DecodeRow(const PackedTableView& w, int64_t row, uint8_t* codes, float* out) {
  UnpackRow(w, row, codes);
  float values[1 << kMostBits];
  for (int64_t g = 0; g < w.groups(); ++g) {
    TableValues(w, row, g, values);
    const int64_t end = (g + 1) * w.group;
    for (int64_t c = g * w.group; c < end; ++c) out[c] = values[codes[c]];
  }
}

}  // namespace

int64_t TableEntries(TableKind kind, int64_t rows, int bits) {
  if (rows < 1 || !GoodBits(bits)) return -1;
  return ProductOrMinusOne(kind == TableKind::kShared ? 1 : rows, TableRow(kind, bits));
}

absl::StatusOr<PackedTableView> MakePackedTableView(absl::Span<const uint8_t> codes,
                                                    absl::Span<const uint16_t> scales,
                                                    absl::Span<const uint16_t> table, int64_t rows,
                                                    int64_t cols, int64_t group, int bits,
                                                    TableKind kind) {
  const absl::StatusOr<Layout> want = CheckShape(rows, cols, group, bits, kind);
  if (!want.ok()) return want.status();
  if (auto s = CheckLength("codes", codes.size(), want->codes); !s.ok()) return s;
  if (auto s = CheckParameters(*want, scales, table); !s.ok()) return s;
  return PackedTableView{codes, scales, table, rows, cols, want->group, bits, kind};
}

absl::StatusOr<PackedTable> PackTable(absl::Span<const uint8_t> codes,
                                      absl::Span<const uint16_t> scales,
                                      absl::Span<const uint16_t> table, int64_t rows, int64_t cols,
                                      int64_t group, int bits, TableKind kind) {
  const absl::StatusOr<Layout> want = CheckShape(rows, cols, group, bits, kind);
  if (!want.ok()) return want.status();
  if (auto s = CheckLength("codes", codes.size(), rows * cols); !s.ok()) return s;
  if (auto s = CheckRange("code", codes, bits); !s.ok()) return s;
  if (auto s = CheckParameters(*want, scales, table); !s.ok()) return s;
  PackedTable packed;
  packed.codes = PackStreams(codes, rows, cols, bits, want->codes / rows);
  packed.scales.assign(scales.begin(), scales.end());
  packed.table.assign(table.begin(), table.end());
  packed.rows = rows;
  packed.cols = cols;
  packed.group = want->group;
  packed.bits = bits;
  packed.kind = kind;
  return packed;
}

void UnpackRow(const PackedTableView& w, int64_t row, uint8_t* out) {
  UnpackStream(w.codes.data() + row * CodeRowBytes(w.cols, w.bits), w.cols, w.bits, out);
}

void TableValues(const PackedTableView& w, int64_t row, int64_t group_index, float* values) {
  const int count = 1 << w.bits;
  const uint16_t* table =
      w.table.data() + (w.kind == TableKind::kShared ? 0 : row * TableRow(w.kind, w.bits));
  if (w.kind == TableKind::kBinary) {
    for (int code = 0; code < count; ++code) {
      values[code] = HalfToFloat(table[0]);
      for (int i = 0; i < w.bits; ++i) {
        const float alpha = HalfToFloat(table[1 + i]);
        values[code] += (code >> i & 1) != 0 ? alpha : -alpha;
      }
    }
    return;
  }
  const float scale =
      w.kind == TableKind::kShared ? HalfToFloat(w.scales[row * w.groups() + group_index]) : 1.0f;
  for (int code = 0; code < count; ++code) values[code] = scale * HalfToFloat(table[code]);
}

void DecodeRows(const PackedTableView& w, int64_t row_begin, int64_t row_end, float* out) {
  std::vector<uint8_t> codes(w.cols);
  for (int64_t r = row_begin; r < row_end; ++r, out += w.cols) DecodeRow(w, r, codes.data(), out);
}

}  // namespace babai
