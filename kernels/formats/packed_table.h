// Format F2: a few bits a weight that index a table of values.
//
//   codes    as in F1 (packed_int.h): [rows, row_bytes], dense little-endian bit stream along cols
//   kShared  w(r, c) = scale(r, c / group) * table[code]       table [2^bits]
//   kRow     w(r, c) = table[r][code]                          table [rows, 2^bits], no scales
//   kBinary  w(r, c) = table[r][0] + sum_i (bit i of code ? +1 : -1) * table[r][1 + i]
//                                                              table [rows, 1 + bits], no scales
//   scales   [rows, groups] fp16 bit patterns, kShared only
//   table    fp16 bit patterns, finite
//   cost     bits + 16 / group (kShared), bits + 16 * 2^bits / cols (kRow), bits + 16 * (1 + bits)
//   / cols
//            (kBinary), up to row padding
//   limits   bits in {2, 3, 4}; group divides cols or is >= cols
//   source   SqueezeLLM (arXiv:2306.07629), NF4 (arXiv:2305.14314), power of two
//   (arXiv:2507.11959);
//            kBinary: binary coding with a bias, LUT-GEMM (arXiv:2206.09557), GPTQT
//            (arXiv:2407.02891)
//
// This is also the on-disk layout (docs/formats.md). To change it, add a layout; never edit this
// one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

enum class TableKind { kShared, kRow, kBinary };

// Owns nothing: the buffers must outlive every copy. Read-only: any number of threads may use it.
struct PackedTableView {
  absl::Span<const uint8_t> codes;
  absl::Span<const uint16_t> scales;  // kShared only
  absl::Span<const uint16_t> table;
  int64_t rows = 0, cols = 0, group = 0;
  int bits = 0;
  TableKind kind = TableKind::kShared;

  int64_t groups() const { return (cols + group - 1) / group; }
};

// Entries that `table` must have; -1 if the shape is outside the limits.
int64_t TableEntries(TableKind kind, int64_t rows, int bits);

// Checks everything once. A group longer than a row becomes the row; kRow and kBinary ignore it.
// InvalidArgument, naming the rule.
absl::StatusOr<PackedTableView> MakePackedTableView(absl::Span<const uint8_t> codes,
                                                    absl::Span<const uint16_t> scales,
                                                    absl::Span<const uint16_t> table, int64_t rows,
                                                    int64_t cols, int64_t group, int bits,
                                                    TableKind kind);

// An owned F2 matrix.
struct PackedTable {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint16_t> table;
  int64_t rows = 0, cols = 0, group = 0;
  int bits = 0;
  TableKind kind = TableKind::kShared;

  PackedTableView view() const { return {codes, scales, table, rows, cols, group, bits, kind}; }
};

// Packs codes [rows, cols], one a byte. InvalidArgument: sizes disagree, or a code is >= 2^bits.
absl::StatusOr<PackedTable> PackTable(absl::Span<const uint8_t> codes,
                                      absl::Span<const uint16_t> scales,
                                      absl::Span<const uint16_t> table, int64_t rows, int64_t cols,
                                      int64_t group, int bits, TableKind kind);

// The values that the codes 0 .. 2^bits-1 of a row's group mean, in fp32. The slow definition.
void TableValues(const PackedTableView& w, int64_t row, int64_t group_index, float* values);

// All codes of a row, one a byte, into out [cols].
void UnpackRow(const PackedTableView& w, int64_t row, uint8_t* out);

// Decodes rows [row_begin, row_end) into out [row_end - row_begin, cols], fp32.
void DecodeRows(const PackedTableView& w, int64_t row_begin, int64_t row_end, float* out);

}  // namespace babai
