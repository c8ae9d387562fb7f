// Grids: the finite (or not) set of values that a weight may take.
//
// A grid is plain data plus two operations. Fitting (scale_fit.h) chooses its parameters from the
// original weights, before any solver runs. Rounding (tile_kernels.h: an overload of Round) maps
// the value that a solver wants, u, to a code and the value that the code decodes to. Solvers are
// templates over the grid and see nothing else of it, so a value table, an unbounded integer or a
// codebook is one struct here, one Round() and one line in the list of instantiations.
#pragma once

#include <cstdint>
#include <vector>

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

}  // namespace babai
