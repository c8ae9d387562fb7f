// Part of a matrix's rows, for the first steps of a search that solves again and again.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace babai {

inline constexpr int64_t kSampleRows = 256;

// Rows of the problem, all or a sample.
struct Rows {
  absl::Span<const float> w;
  int64_t count = 0;
  const std::vector<uint8_t>* kept = nullptr;
};

// Every so many rows of values [rows, cols], `count` in all.
template <typename V>
std::vector<V> SpreadRows(absl::Span<const V> values, int64_t rows, int64_t cols, int64_t count) {
  std::vector<V> out;
  out.reserve(count * cols);
  for (int64_t i = 0; i < count; ++i) {
    const auto row = values.subspan(i * rows / count * cols, cols);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

// Rows that a search looks at first, copied; all of them if they are few.
class RowSample {
 public:
  RowSample(const Rows& all, int64_t cols) : rows_(all) {
    if (all.count < 2 * kSampleRows) return;
    w_ = SpreadRows(all.w, all.count, cols, kSampleRows);
    rows_ = {w_, kSampleRows, nullptr};
    if (all.kept == nullptr) return;
    kept_ = SpreadRows(absl::MakeConstSpan(*all.kept), all.count, cols, kSampleRows);
    rows_.kept = &kept_;
  }
  const Rows& rows() const { return rows_; }

 private:
  std::vector<float> w_;
  std::vector<uint8_t> kept_;
  Rows rows_;
};

}  // namespace babai
