// Sums over tokens of products of activations, out += a' b: the second moments that quantization is
// guided by.
//
//   regime    as many tokens as fit kMostTokens at a time, columns in hundreds and thousands
//   roof      the fp32 multiply-add rate
//   numerics  products and sums of at most kMostTokens terms in fp32, in order of the tokens; sums
//   of
//             these in fp64. The same bits for any number of threads.
//   measured  bench/quant_core
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/thread_pool.h"

namespace babai::cpu {

// Columns of the activations of some tokens in the order in which products read them:
// [ceil(width / 16)][tokens][16], padded with 0. Not thread-safe; memory is kept between fillings.
class TokenPanels {
 public:
  static constexpr int64_t kMostTokens = 1024;

  // x [tokens, width] row-major, tokens <= kMostTokens; minus `minus` of the same shape unless that
  // is null. ResourceExhausted: no memory; the panels are then empty.
  absl::Status Fill(const float* x, const float* minus, int64_t tokens, int64_t width,
                    ThreadPool& pool);
  // Whether every magnitude is below `limit`. NaNs and infinities are below none.
  bool AllBelow(float limit, ThreadPool& pool) const;

  int64_t tokens() const { return tokens_; }
  int64_t width() const { return width_; }
  const float* data() const { return reinterpret_cast<const float*>(data_.data()); }

 private:
  AlignedBuffer data_;
  int64_t tokens_ = 0, width_ = 0;
};

// out [a.width, b.width] += a' b. Both of the same tokens.
void AddProducts(const TokenPanels& a, const TokenPanels& b, double* out, ThreadPool& pool);

// gram [width, width] += a' a. Only gram[i, j] with j <= i and, right of it, some of the diagonal
// blocks are touched: read the lower triangle alone.
void AddGram(const TokenPanels& a, double* gram, ThreadPool& pool);

}  // namespace babai::cpu
