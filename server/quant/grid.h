// Grids: the finite (or not) set of values that a weight may take.
//
// A grid is plain data plus two operations. Fitting (scale_fit.h, table_fit.h, step_fit.h) chooses
// its parameters from the original weights, before any solver runs. Rounding (tile_kernels.h: an
// overload of Round) maps the value that a solver wants, u, to a code and the value that the code
// decodes to. Solvers are templates over the grid and see nothing else of it, so a new one is one
// struct here, one Round() and one line in the list of instantiations.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/formats/entropy_coded.h"
#include "kernels/formats/packed_table.h"

namespace babai {

// Uniform integers, format F1: value = scale * (code - zero), code in 0..2^bits-1.
// Parameters of every group of every row. Groups are of ORIGINAL columns: the order in which a
// solver visits columns never changes which scale a weight uses.
struct UniformGrid {
  int bits = 0;
  bool symmetric = false;  // zero is 2^(bits-1) everywhere
  int64_t rows = 0, cols = 0, group = 0;
  std::vector<uint16_t> scales;  // [rows, groups] fp16 bit patterns, positive and finite: as stored
  std::vector<uint8_t> zeros;    // [rows, groups], 0..2^bits-1

  int64_t groups() const { return (cols + group - 1) / group; }
  int max_code() const { return (1 << bits) - 1; }
};

// The same steps without an end: code is any integer. The grid of the Babai bound; nothing stores
// it.
struct UnboundedGrid : UniformGrid {};

// A table of values, format F2; fields as in packed_table.h, what is stored. Values of a table that
// is used for rounding are ascending in every row once decoded (TableValues), but for kBinary,
// whose codes are bit planes.
struct TableGrid {
  int bits = 0;
  TableKind kind = TableKind::kShared;
  int64_t rows = 0, cols = 0, group = 0;
  std::vector<uint16_t> scales;  // [rows, groups], kShared only
  std::vector<uint16_t> table;

  int64_t groups() const { return (cols + group - 1) / group; }
};

// All integers, format F6: z = round(u / steps[c]), value = z * values[c]. `values` is what is
// stored (a column scale that fp16 holds exactly); it is the step, or less where shrinking towards
// zero is right. With a model and a rate_weight > 0 a solver takes, of the two integers nearest to
// u / step, the one with the smaller L_pp^2 (u - value)^2 + rate_weight * bits(z).
struct IntegerGrid {
  int64_t rows = 0, cols = 0;
  std::vector<float> steps;             // [cols], > 0
  std::vector<float> values;            // [cols], > 0
  const EntropyModel* model = nullptr;  // not owned
  double rate_weight = 0;
};

// What a solver returns for each weight.
template <typename Grid>
struct GridCode {
  using type = uint8_t;
};
template <>
struct GridCode<UnboundedGrid> {
  using type = int32_t;
};
template <>
struct GridCode<IntegerGrid> {
  using type = int32_t;
};
template <typename Grid>
using CodeOf = typename GridCode<Grid>::type;

}  // namespace babai
