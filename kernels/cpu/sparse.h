// y += x * S' on the CPU, S sparse: the few weights that a dense format can not hold.
//
//   numerics  the sum of a row runs over its entries in order, in four parts (entry i into part
//             i % 4); y[t][n] depends on x[t] and S alone, as in matmul.h
//   roof      one multiply-add an entry and token; for m > 4 eight tokens share what is read
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/thread_pool.h"

namespace babai::cpu {

// Compressed rows with fp32 values. Filled row by row, immutable afterwards.
class SparseWeights {
 public:
  static constexpr int64_t kMostCols = 65536;

  SparseWeights() = default;
  // Requires 1 <= cols <= kMostCols.
  explicit SparseWeights(int64_t cols) : cols_(cols), row_begin_{0} {}

  // Adds to the row now being filled. Requires 0 <= col < cols().
  void Add(int64_t col, float value) {
    columns_.push_back(static_cast<uint16_t>(col));
    values_.push_back(value);
  }
  void EndRow() { row_begin_.push_back(static_cast<int64_t>(columns_.size())); }
  void Append(const SparseWeights& rows);  // of as many columns
  void ShrinkToFit();
  void Scale(float factor);  // every value

  bool empty() const { return columns_.empty(); }
  int64_t rows() const { return static_cast<int64_t>(row_begin_.size()) - 1; }
  int64_t cols() const { return cols_; }
  int64_t entries() const { return static_cast<int64_t>(columns_.size()); }
  // What a matrix of so many rows and entries takes.
  static int64_t BytesFor(int64_t rows, int64_t entries) { return 8 * (rows + 1) + 6 * entries; }
  int64_t bytes() const { return BytesFor(rows(), entries()); }

  const int64_t* row_begin() const { return row_begin_.data(); }
  const uint16_t* columns() const { return columns_.data(); }
  const float* values() const { return values_.data(); }

 private:
  int64_t cols_ = 0;
  std::vector<int64_t> row_begin_;
  std::vector<uint16_t> columns_;
  std::vector<float> values_;
};

// args.y, already written, gets the product added; args.bias is not read.
void AddMatmulSparse(const SparseWeights& w, const MatmulArgs& args, ThreadPool& pool);

}  // namespace babai::cpu
