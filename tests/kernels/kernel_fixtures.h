// Seeded data and instruction sets for the tests of kernels/cpu.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/packed_int.h"

namespace babai::cpu {

inline constexpr double kEps = std::numeric_limits<float>::epsilon();

// Those this processor has; the tests say so by running fewer.
inline std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512Vnni}) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

// Uses an instruction set for a scope.
class WithIsa {
 public:
  explicit WithIsa(Isa isa) : before_(ActiveIsa()) { SetIsa(isa); }
  ~WithIsa() { SetIsa(before_); }
  WithIsa(const WithIsa&) = delete;
  WithIsa& operator=(const WithIsa&) = delete;

 private:
  Isa before_;
};

inline std::vector<float> RandomFloats(int64_t n, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = normal(rng);
  return values;
}

inline PackedInt RandomPackedInt(int64_t rows, int64_t cols, int64_t group, int bits,
                                 bool asymmetric, uint32_t seed) {
  std::mt19937 rng(seed);
  const uint32_t mask = (1u << bits) - 1;
  const int64_t groups = group >= cols ? 1 : cols / group;
  std::vector<uint8_t> codes(rows * cols), zeros(asymmetric ? rows * groups : 0);
  std::vector<uint16_t> scales(rows * groups);
  for (uint8_t& c : codes) c = rng() & mask;
  for (uint8_t& z : zeros) z = rng() & mask;
  for (uint16_t& s : scales) s = FloatToHalf(0.001f + 1e-5f * (rng() % 1000));
  return *PackInt(codes, scales, zeros, rows, cols, group, bits);
}

// Runs one of the three products into a fresh [m, n] result that starts as NaNs: an output left
// unwritten must fail. Rows of x and y stand further apart than they need.
template <class Weights>
std::vector<float> RunMatmul(void (*matmul)(const Weights&, const MatmulArgs&, ThreadPool&),
                             const Weights& w, const std::vector<float>& x, int64_t m,
                             ThreadPool& pool, const float* bias = nullptr) {
  const int64_t k = w.cols(), n = w.rows(), ldx = k + 3, ldy = n + 5;
  std::vector<float> wide_x(m * ldx, std::nanf("")), wide_y(m * ldy, std::nanf(""));
  for (int64_t t = 0; t < m; ++t) std::copy_n(&x[t * k], k, &wide_x[t * ldx]);
  AlignedBuffer scratch(MatmulScratchBytes(m, k));
  matmul(w, {wide_x.data(), m, ldx, bias, wide_y.data(), ldy, scratch.data()}, pool);
  std::vector<float> y(m * n);
  for (int64_t t = 0; t < m; ++t) {
    std::copy_n(&wide_y[t * ldy], n, &y[t * n]);
    // Nothing between the rows was touched.
    for (int64_t i = n; i < ldy; ++i) {
      if (!std::isnan(wide_y[t * ldy + i])) y[t * n] = std::nanf("");
    }
  }
  return y;
}

}  // namespace babai::cpu
