// Seeded matrices in the packed formats, for tests of anything that reads them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/formats/entropy_coded.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/packed_table.h"
#include "kernels/formats/sparse_rows.h"

namespace babai {

inline std::vector<uint16_t> RandomHalves(int64_t n, float low, float high, uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<uint16_t> halves(n);
  for (uint16_t& h : halves) h = FloatToHalf(uniform(rng));
  return halves;
}

inline std::vector<uint8_t> RandomCodes(int64_t n, int bits, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<uint8_t> codes(n);
  for (uint8_t& c : codes) c = rng() & ((1u << bits) - 1);
  return codes;
}

inline PackedTable RandomPackedTable(int64_t rows, int64_t cols, int64_t group, int bits,
                                     TableKind kind, uint32_t seed) {
  const int64_t scales = kind != TableKind::kShared ? 0
                         : group >= cols            ? rows
                                                    : rows * cols / group;
  return *PackTable(
      RandomCodes(rows * cols, bits, seed), RandomHalves(scales, 0.01f, 0.1f, seed + 1),
      RandomHalves(TableEntries(kind, rows, bits), -1, 1, seed + 2), rows, cols, group, bits, kind);
}

// About every `every`-th weight, never fewer than one in the matrix.
inline SparseRows RandomSparseRows(int64_t rows, int64_t cols, int every, uint32_t seed) {
  std::mt19937 rng(seed);
  SparseRows s;
  s.rows = rows;
  s.cols = cols;
  s.row_begin.push_back(0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      if (rng() % every != 0 && (r != rows / 2 || c != cols / 2)) continue;
      s.columns.push_back(static_cast<uint16_t>(c));
      s.values.push_back(FloatToHalf(1.0f - 0.001f * static_cast<float>(rng() % 2000)));
    }
    s.row_begin.push_back(static_cast<uint32_t>(s.columns.size()));
  }
  return s;
}

// Rounded normal values of deviation `sigma` times 2^(spread * n(0, 1)) for each row and column.
inline std::vector<int32_t> RandomIntegers(int64_t rows, int64_t cols, double sigma, double spread,
                                           uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<double> by_row(rows), by_col(cols);
  for (double& s : by_row) s = std::exp2(spread * normal(rng));
  for (double& s : by_col) s = std::exp2(spread * normal(rng));
  std::vector<int32_t> z;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double v = std::round(sigma * by_row[r] * by_col[c] * normal(rng));
      z.push_back(static_cast<int32_t>(std::clamp(v, -32767.0, 32767.0)));
    }
  }
  return z;
}

inline EntropyCoded RandomEntropyCoded(int64_t rows, int64_t cols, double sigma, double spread,
                                       uint32_t seed) {
  return *EncodeEntropy(RandomIntegers(rows, cols, sigma, spread, seed),
                        RandomHalves(rows, 0.5f, 2, seed + 1),
                        RandomHalves(cols, 0.01f, 0.1f, seed + 2), rows, cols);
}

}  // namespace babai
