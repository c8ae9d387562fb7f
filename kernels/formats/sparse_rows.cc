#include "kernels/formats/sparse_rows.h"

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/layout_checks.h"

namespace babai {
namespace {

constexpr int64_t kMostCols = 65536;  // columns are u16

absl::Status CheckRow(const SparseRowsView& s, int64_t row) {
  const uint32_t begin = s.row_begin[row], end = s.row_begin[row + 1];
  if (end < begin || end > s.columns.size()) {
    return absl::InvalidArgumentError(absl::StrCat("row ", row, ": its entries end before they ",
                                                   "begin, or behind the last one"));
  }
  for (uint32_t i = begin; i < end; ++i) {
    if (s.columns[i] >= s.cols || (i > begin && s.columns[i] <= s.columns[i - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", row, ": column ", s.columns[i], " is not ascending below cols"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SparseRowsView> MakeSparseRowsView(absl::Span<const uint32_t> row_begin,
                                                  absl::Span<const uint16_t> columns,
                                                  absl::Span<const uint16_t> values, int64_t rows,
                                                  int64_t cols) {
  if (auto s = CheckDimensions(rows, cols); !s.ok()) return s;
  if (cols > kMostCols || columns.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("sparse values of ", cols, " columns: at most ", kMostCols, " are possible"));
  }
  if (rows == std::numeric_limits<int64_t>::max()) return absl::InvalidArgumentError("too large");
  if (auto s = CheckLength("row_begin", row_begin.size(), rows + 1); !s.ok()) return s;
  if (auto s = CheckLength("values", values.size(), columns.size()); !s.ok()) return s;
  if (row_begin.front() != 0 || row_begin.back() != columns.size()) {
    return absl::InvalidArgumentError("row_begin does not run from 0 to the number of entries");
  }
  const SparseRowsView view = {row_begin, columns, values, rows, cols};
  for (int64_t r = 0; r < rows; ++r) {
    if (auto s = CheckRow(view, r); !s.ok()) return s;
  }
  if (auto s = CheckFinite("sparse value", values); !s.ok()) return s;
  return view;
}

void AddRows(const SparseRowsView& s, int64_t row_begin, int64_t row_end, float* out) {
  for (int64_t r = row_begin; r < row_end; ++r, out += s.cols) {
    for (uint32_t i = s.row_begin[r]; i < s.row_begin[r + 1]; ++i) {
      out[s.columns[i]] += HalfToFloat(s.values[i]);
    }
  }
}

}  // namespace babai
