// y = x * W^T with weights that are looked up: 4-bit codes, and a table of 16 values a row (formats
// F2, packed_table.h; fewer bits use the first values).
//
//   layout    two neighbouring codes of a row are one 8-bit code of a matrix with half the columns,
//             which lies as packed_layout.h says once each 16 of its columns are ordered as
//             PlaceOfTablePair() says; its groups are half as wide. Tables [n, 16] fp16
//   regime    TableGemm(): m in 1..16. Many tokens: TableDecode(), then a dense product
//   roof      codes, scales and tables over memory bandwidth. Held back by lookups, 32 a clock and
//             SM, and by x from L2, which each block reads whole
//   method    a block has 16 rows; each of its warps some of the columns, straight from memory into
//             registers. A table of the 256 pairs of values of each row, in shared memory,
//             gives two weights a lookup: a word of four codes, looked up, is operand A of one
//             mma.m16n8k16; operand B of two words is eight neighbours of a row of x
//   limits    k a multiple of 32; groups of 32, 64, 128 or a row; fp16 or bf16 x and y
//   numerics  table values rounded to dtype, products exact, sums fp32, one fp32 multiply by the
//             scale a group and one rounding of y. Deterministic
//   source    pairs of values looked up: SqueezeLLM's and LUT-GEMM's tables (arXiv:2306.07629,
//             2206.09557), there of values and of sums of x
//   measured  docs/perf/cuda_gemm.md, by bench/gemm --tables
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kTableValues = 16;
constexpr int kTableTokens = 16;
constexpr int kTableUnit = 32;  // columns of W that are ordered among themselves

// Where pair i of a unit's sixteen stands: so that the lane which has pairs 4t to 4t + 3, of two
// words, has eight neighbouring columns.
constexpr int PlaceOfTablePair(int i) { return i / 4 * 2 + i % 2 + i / 2 % 2 * 8; }

// The codes of W [n, k] as pairs. group: 32, 64 or 128; 0: a row.
constexpr PackedShape TableShape(int n, int k, int group) {
  return {n, k / 2, 8, group / 2, false};
}

struct TableWeights {      // device pointers
  const uint8_t* codes;    // shape.bytes(), 16-byte aligned
  const uint16_t* tables;  // [n, kTableValues] fp16 bit patterns, 16-byte aligned
  PackedShape shape;       // TableShape()
};

struct TableGemmArgs {  // device pointers
  const void* x;        // [m, k] of dtype, row-major, 16-byte aligned
  void* y;              // [m, n] of dtype, row-major; overwritten
  TableWeights weights;
  int m;
  Dtype dtype;
};

// Both enqueue and return without waiting. cudaErrorInvalidValue: outside the limits.
cudaError_t TableGemm(const TableGemmArgs& args, const Queue& queue);

struct TableDecodeArgs {
  TableWeights weights;
  int first_row, rows;  // the first a multiple of kStripRows
  void* out;            // [rows, k] of dtype, 16-byte aligned: each weight rounded once
  Dtype dtype;
};

cudaError_t TableDecode(const TableDecodeArgs& args, const Queue& queue);

}  // namespace babai::cuda
