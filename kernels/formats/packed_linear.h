// One linear layer as it is stored: a packed matrix and what stands around it.
//
//   y = R_out' ( B + S ) C R_in x       B a packed matrix (F1, F2 or F6), S sparse values in B's
//   basis, C = diag(col_scales), R_in and R_out rotations
//
// so the weight is W = R_out' (B + S) C R_in. Every part but B is optional. For F6, which has
// column scales of its own, `col_scales` here is empty.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/formats/entropy_coded.h"
#include "kernels/formats/packed_int.h"
#include "kernels/formats/packed_table.h"
#include "kernels/formats/rotation.h"
#include "kernels/formats/sparse_rows.h"

namespace babai {

// Owns nothing.
struct PackedLinearView {
  std::variant<PackedIntView, PackedTableView, EntropyCodedView> base;
  std::optional<SparseRowsView> sparse;
  absl::Span<const uint16_t> col_scales;  // fp16 bit patterns [cols], or empty
  Rotation in, out;

  int64_t rows() const;
  int64_t cols() const;
};

// Checks that the parts fit each other, `base` and `sparse` having been checked by their own
// Make...View: equal shapes, finite column scales (none for F6), rotations that divide the
// dimensions. InvalidArgument names the rule.
absl::StatusOr<PackedLinearView> MakePackedLinearView(const PackedLinearView& parts);

struct PackedLinear {
  std::variant<PackedInt, PackedTable, EntropyCoded> base;
  std::optional<SparseRows> sparse;
  std::vector<uint16_t> col_scales;
  Rotation in, out;

  PackedLinearView view() const;
  int64_t rows() const;
  int64_t cols() const;
  // Everything stored, the rotations' parameters (16 bytes each) included.
  int64_t bytes() const;
};

// B + S, then times C, in B's own (rotated) basis: rows [row_begin, row_end) into out. F6 decodes
// whole strips: row_begin must be a multiple of kEntropyStripRows, and row_end too or be rows().
// (Its column scales are part of B, so S is not scaled.) DataLoss: an F6 stream does not decode.
absl::Status DecodeRows(const PackedLinearView& w, int64_t row_begin, int64_t row_end, float* out);

// The whole weight W [rows, cols] in the model's basis. DataLoss as above.
absl::Status DecodeWeight(const PackedLinearView& w, float* out);

}  // namespace babai
