#include "kernels/cpu/sparse.h"

#include <algorithm>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

constexpr int kParts = 4;
// Fewer tokens are not worth being packed side by side.
constexpr int64_t kAloneTokens = 4;
constexpr int64_t kRowGrain = 16;

// One token's sum over the entries [begin, end).
float RowSum(const SparseWeights& w, int64_t begin, int64_t end, const float* x) {
  float parts[kParts] = {};
  for (int64_t i = begin; i < end; ++i) {
    parts[(i - begin) % kParts] += w.values()[i] * x[w.columns()[i]];
  }
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

void AddRows(const SparseWeights& w, const MatmulArgs& args, int64_t r0, int64_t r1) {
  for (int64_t t = 0; t < args.m; ++t) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t begin = w.row_begin()[r], end = w.row_begin()[r + 1];
      if (begin < end) args.y[t * args.ldy + r] += RowSum(w, begin, end, args.x + t * args.ldx);
    }
  }
}

// The sums of eight tokens that lie side by side, x [cols][8]: the same operations in the same
// order as RowSum().
void TileSums(const SparseWeights& w, int64_t begin, int64_t end, const float* x, float* sums) {
  float parts[kParts][kTileTokens] = {};
  for (int64_t i = begin; i < end; ++i) {
    float* part = parts[(i - begin) % kParts];
    const float* column = x + int64_t{w.columns()[i]} * kTileTokens;
    for (int j = 0; j < kTileTokens; ++j) part[j] += w.values()[i] * column[j];
  }
  for (int j = 0; j < kTileTokens; ++j) {
    sums[j] = (parts[0][j] + parts[1][j]) + (parts[2][j] + parts[3][j]);
  }
}

void AddTileRows(const SparseWeights& w, const MatmulArgs& args, const float* packed, int64_t r0,
                 int64_t r1) {
  for (int64_t t = 0; t < args.m; t += kTileTokens) {
    const int64_t tokens = std::min<int64_t>(kTileTokens, args.m - t);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t begin = w.row_begin()[r], end = w.row_begin()[r + 1];
      if (begin == end) continue;
      float sums[kTileTokens];
      TileSums(w, begin, end, packed + t * w.cols(), sums);
      for (int64_t j = 0; j < tokens; ++j) args.y[(t + j) * args.ldy + r] += sums[j];
    }
  }
}

// [ceil(m / 8)][cols][8]; missing tokens of the last tile are zeros.
const float* PackTiles(const SparseWeights& w, const MatmulArgs& args, ThreadPool& pool) {
  float* packed = reinterpret_cast<float*>(args.scratch);
  const int64_t tiles = (args.m + kTileTokens - 1) / kTileTokens;
  pool.ParallelFor(tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * kTileTokens; t < end * kTileTokens; ++t) {
      float* to = packed + t / kTileTokens * kTileTokens * w.cols() + t % kTileTokens;
      const float* row = args.x + t * args.ldx;
      for (int64_t c = 0; c < w.cols(); ++c) to[c * kTileTokens] = t < args.m ? row[c] : 0.0f;
    }
  });
  return packed;
}

}  // namespace

void SparseWeights::Append(const SparseWeights& rows) {
  const int64_t before = entries();
  columns_.insert(columns_.end(), rows.columns_.begin(), rows.columns_.end());
  values_.insert(values_.end(), rows.values_.begin(), rows.values_.end());
  for (size_t r = 1; r < rows.row_begin_.size(); ++r) {
    row_begin_.push_back(before + rows.row_begin_[r]);
  }
}

void SparseWeights::ShrinkToFit() {
  row_begin_.shrink_to_fit();
  columns_.shrink_to_fit();
  values_.shrink_to_fit();
}

void SparseWeights::Scale(float factor) {
  for (float& v : values_) v *= factor;
}

void AddMatmulSparse(const SparseWeights& w, const MatmulArgs& args, ThreadPool& pool) {
  if (args.m == 0 || w.empty()) return;
  if (args.m <= kAloneTokens) {
    pool.ParallelFor(w.rows(), kRowGrain,
                     [&](int64_t begin, int64_t end) { AddRows(w, args, begin, end); });
    return;
  }
  const float* packed = PackTiles(w, args, pool);
  pool.ParallelFor(w.rows(), kRowGrain,
                   [&](int64_t begin, int64_t end) { AddTileRows(w, args, packed, begin, end); });
}

}  // namespace babai::cpu
