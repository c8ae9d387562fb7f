// Sparse part of a weight matrix: values that are added to what a dense format decodes.
//
//   meaning  w(r, columns[i]) += values[i]  for i in [row_begin[r], row_begin[r + 1])
//   row_begin [rows + 1] u32, ascending from 0 to the number of entries
//   columns   [entries] u16, strictly ascending inside a row, each < cols <= 65536
//   values    [entries] fp16 bit patterns, finite
//   cost      32 bits an entry and 32 bits a row
//   source    compressed sparse rows as SpQR (arXiv:2306.03078) and SSQR (arXiv:2507.18553) use
//   them
//
// This is also the on-disk layout (docs/formats.md). To change it, add a layout; never edit this
// one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

// Owns nothing. Read-only: any number of threads may use it.
struct SparseRowsView {
  absl::Span<const uint32_t> row_begin;
  absl::Span<const uint16_t> columns;
  absl::Span<const uint16_t> values;
  int64_t rows = 0, cols = 0;

  int64_t entries() const { return static_cast<int64_t>(columns.size()); }
};

// Checks every rule above once. InvalidArgument names the rule and the row.
absl::StatusOr<SparseRowsView> MakeSparseRowsView(absl::Span<const uint32_t> row_begin,
                                                  absl::Span<const uint16_t> columns,
                                                  absl::Span<const uint16_t> values, int64_t rows,
                                                  int64_t cols);

// An owned one.
struct SparseRows {
  std::vector<uint32_t> row_begin;
  std::vector<uint16_t> columns;
  std::vector<uint16_t> values;
  int64_t rows = 0, cols = 0;

  SparseRowsView view() const { return {row_begin, columns, values, rows, cols}; }
  int64_t bytes() const {
    return static_cast<int64_t>(4 * row_begin.size() + 2 * columns.size() + 2 * values.size());
  }
};

// out [row_end - row_begin, cols] += the sparse part of these rows.
void AddRows(const SparseRowsView& s, int64_t row_begin, int64_t row_end, float* out);

}  // namespace babai
