// How a packed linear is executed on the CPU: what its format becomes when it is loaded.
//
//   F1                     packed integers, as they are
//   F2, a shared table     packed integers of 4 or 8 bits where the table's values are integer
//                          multiples of a power of two and the scales can take that up exactly
//   F6                     packed integers of 4 bits, or of 8 where more than 1 in 200 would not
//                          fit; what does not fit is added as sparse values
//   any other F2           dense fp16 weights, in the model's own basis
//
// Sparse values, column scales and rotations stay beside packed integers and are carried out on
// their inputs and outputs.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/sparse.h"
#include "kernels/formats/packed_linear.h"

namespace babai {

struct LinearLayout {
  bool dense = false;  // fp16
  int bits = 0;        // otherwise packed integers
  int64_t group = 0;
  bool symmetric = true;
  int64_t sparse_entries = 0;  // of F6 an estimate
};

// DataLoss: an entropy model that can not be read.
absl::StatusOr<LinearLayout> LayoutOf(const PackedLinearView& w);

// Memory of a matrix in this layout, what is needed for its rotations and scales included.
int64_t LayoutBytes(const LinearLayout& layout, const PackedLinearView& w);

// A linear as packed integers: y = R_out' (B + S) (factors * (R_in x)).
struct IntegerLinear {
  PackedInt owned;                 // where the integers are not the file's
  PackedIntView integers;          // B
  cpu::SparseWeights sparse;       // S
  std::vector<float> col_factors;  // or empty: all 1
};

// Both: DataLoss: an entropy-coded stream does not decode. InvalidArgument: more columns than
// sparse values can name.
absl::StatusOr<IntegerLinear> MakeIntegers(const PackedLinearView& w, const LinearLayout& layout);
// Sparse values as they stand around any kind of integers or tables.
cpu::SparseWeights SparseOf(const SparseRowsView& s);
// W [rows, cols] as fp16 bit patterns.
absl::StatusOr<std::vector<uint16_t>> MakeDense(const PackedLinearView& w);

}  // namespace babai
