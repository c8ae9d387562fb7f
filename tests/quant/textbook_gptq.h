// GPTQ as its authors state it (arXiv:2210.17323, algorithm 1, with static groups): from the upper
// Cholesky factor of the inverse second moment, front to back. Shares no step with the sweep under
// test, which needs no inverse and goes back to front. Naive loops, fp64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/quant/problem.h"

namespace babai::testing_quant {

using Matrix = std::vector<double>;  // [k, k] row-major

// Lower factor of a symmetric positive definite matrix.
inline Matrix LowerCholesky(Matrix a, int64_t k) {
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t i = j; i < k; ++i) {
      double sum = a[i * k + j];
      for (int64_t m = 0; m < j; ++m) sum -= a[i * k + m] * a[j * k + m];
      a[i * k + j] = i == j ? std::sqrt(sum) : sum / a[j * k + j];
    }
    for (int64_t i = 0; i < j; ++i) a[i * k + j] = 0;
  }
  return a;
}

inline Matrix Inverse(const Matrix& a, int64_t k) {
  const Matrix l = LowerCholesky(a, k);
  Matrix inverse(k * k);
  for (int64_t col = 0; col < k; ++col) {
    std::vector<double> y(k);
    for (int64_t i = 0; i < k; ++i) {  // l y = e_col
      double sum = i == col;
      for (int64_t m = 0; m < i; ++m) sum -= l[i * k + m] * y[m];
      y[i] = sum / l[i * k + i];
    }
    for (int64_t i = k - 1; i >= 0; --i) {  // l' x = y
      for (int64_t m = i + 1; m < k; ++m) y[i] -= l[m * k + i] * y[m];
      y[i] /= l[i * k + i];
      inverse[i * k + col] = y[i];
    }
  }
  return inverse;
}

// U upper with U' U = a: GPTQ's `cholesky(H^-1, upper=True)`.
inline Matrix UpperCholesky(const Matrix& a, int64_t k) {
  const Matrix l = LowerCholesky(a, k);
  Matrix u(k * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = i; j < k; ++j) u[i * k + j] = l[j * k + i];
  }
  return u;
}

// Codes [n, k] in original column order. `first_to_last` is the order in which columns are
// quantized. clip = false lets codes be any integer.
inline std::vector<int64_t> TextbookGptq(const Problem& p, const UniformGrid& grid,
                                         const std::vector<int32_t>& first_to_last, double damping,
                                         bool clip) {
  const int64_t n = p.n, k = p.k;
  Matrix h(k * k), w(n * k);
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      h[i * k + j] = p.h[first_to_last[i] * k + first_to_last[j]] + (i == j ? damping : 0);
    }
    for (int64_t r = 0; r < n; ++r) w[r * k + i] = p.w[r * k + first_to_last[i]];
  }
  const Matrix u = UpperCholesky(Inverse(h, k), k);
  std::vector<int64_t> codes(n * k);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t column = first_to_last[i];
    for (int64_t r = 0; r < n; ++r) {
      const double scale = ScaleOf(grid, r, column), zero = ZeroOf(grid, r, column);
      double code = std::round(w[r * k + i] / scale) + zero;
      if (clip) code = std::fmin(std::fmax(code, 0), grid.max_code());
      codes[r * k + column] = static_cast<int64_t>(code);
      const double error = (w[r * k + i] - scale * (code - zero)) / u[i * k + i];
      for (int64_t j = i; j < k; ++j) w[r * k + j] -= error * u[i * k + j];
    }
  }
  return codes;
}

}  // namespace babai::testing_quant
