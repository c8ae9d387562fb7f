// Random layer problems from a fixed seed, and the slow definitions that results are compared with.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/formats/float16.h"
#include "server/quant/factor.h"
#include "server/quant/grid.h"
#include "server/quant/solver.h"

namespace babai::testing_quant {

struct Problem {
  int64_t n = 0, k = 0, tokens = 0;
  std::vector<float> w;   // [n, k]
  std::vector<float> x;   // [tokens, k]
  std::vector<double> h;  // [k, k] = x' x / tokens
};

inline std::vector<double> SecondMoment(const std::vector<float>& x, int64_t tokens, int64_t k) {
  std::vector<double> h(k * k);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) h[i * k + j] += double{x[t * k + i]} * x[t * k + j] / tokens;
    }
  }
  return h;
}

// Inputs as a network's are: a few strong directions shared by all, weak noise of their own, and
// activities that differ from column to column.
inline Problem MakeProblem(int64_t n, int64_t k, int64_t tokens, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  const int64_t rank = k / 4 + 1;
  std::vector<float> mix(rank * k), activity(k);
  for (float& m : mix) m = normal(rng);
  for (float& a : activity) a = std::exp(normal(rng));
  Problem p = {n, k, tokens, std::vector<float>(n * k), std::vector<float>(tokens * k), {}};
  for (float& w : p.w) w = 0.05f * normal(rng) * (rng() % 64 == 0 ? 5.0f : 1.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<float> latent(rank);
    for (float& z : latent) z = normal(rng);
    for (int64_t c = 0; c < k; ++c) {
      float sum = 0.3f * normal(rng);
      for (int64_t r = 0; r < rank; ++r) sum += latent[r] * mix[r * k + c] / std::sqrt(float(rank));
      p.x[t * k + c] = sum * activity[c];
    }
  }
  p.h = SecondMoment(p.x, tokens, k);
  return p;
}

inline double ScaleOf(const UniformGrid& g, int64_t row, int64_t column) {
  return HalfToFloat(g.scales[row * g.groups() + column / g.group]);
}
inline double ZeroOf(const UniformGrid& g, int64_t row, int64_t column) {
  return g.zeros[row * g.groups() + column / g.group];
}

// What a code stands for, by the definition of each format.
inline double ValueOf(const UniformGrid& g, int64_t row, int64_t column, double code) {
  return ScaleOf(g, row, column) * (code - ZeroOf(g, row, column));
}
inline double ValueOf(const IntegerGrid& g, int64_t, int64_t column, double code) {
  return code * g.values[column];
}
inline double ValueOf(const TableGrid& g, int64_t row, int64_t column, double code) {
  std::vector<float> values(1 << g.bits);
  TableValues({{}, g.scales, g.table, g.rows, g.cols, g.group, g.bits, g.kind}, row,
              column / g.group, values.data());
  return values[static_cast<int>(code)];
}

// Codes and sparse values as a matrix.
template <typename Grid>
std::vector<double> Decoded(const Grid& g, const Solution<CodeOf<Grid>>& s) {
  std::vector<double> q(g.rows * g.cols);
  for (int64_t r = 0; r < g.rows; ++r) {
    for (int64_t c = 0; c < g.cols; ++c)
      q[r * g.cols + c] = ValueOf(g, r, c, s.codes[r * g.cols + c]);
    for (uint32_t i = s.sparse.row_begin[r]; i < s.sparse.row_begin[r + 1]; ++i)
      q[r * g.cols + s.sparse.columns[i]] += HalfToFloat(s.sparse.values[i]);
  }
  return q;
}

// tr((w - q) (h + damping) (w - q)'), all in fp64.
inline double LossOf(const Problem& p, const std::vector<double>& q, double damping) {
  double loss = 0;
  std::vector<double> e(p.k);
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t c = 0; c < p.k; ++c) e[c] = p.w[r * p.k + c] - q[r * p.k + c];
    for (int64_t i = 0; i < p.k; ++i) {
      for (int64_t j = 0; j < p.k; ++j)
        loss += e[i] * (p.h[i * p.k + j] + (i == j ? damping : 0)) * e[j];
    }
  }
  return loss;
}

// The same for q decoded from codes [n, k] alone.
template <typename Code>
double ProxyLoss(const Problem& p, const UniformGrid& g, const std::vector<Code>& codes,
                 double damping) {
  std::vector<double> q(p.n * p.k);
  for (int64_t i = 0; i < p.n * p.k; ++i)
    q[i] = ValueOf(g, i / p.k, i % p.k, static_cast<double>(codes[i]));
  return LossOf(p, q, damping);
}

// L_pp^2 by original column: the usual importance of a fit.
inline std::vector<double> PivotsOf(const Factor& f) {
  std::vector<double> pivots(f.k);
  for (int64_t p = 0; p < f.k; ++p) pivots[f.order[p]] = f.l[p * f.k + p] * f.l[p * f.k + p];
  return pivots;
}

}  // namespace babai::testing_quant
