// What a product of packed weights may do to x on its way in and to its sums on their way out, so
// that no kernel of its own has to: at few tokens such a kernel costs more than the memory it
// touches.
#pragma once

namespace babai::cuda {

enum class GemmOutput {
  kStore,  // y [m, n] of dtype = sums
  kAdd,    // y [m, n] fp32 += sums: the residual stream
  // y [m, n / 2] of dtype = f(gate) * up, where of each 16 rows of W the first eight are gate's and
  // the others the same eight of up: row r of y is rows r / 8 * 16 + r % 8 and eight further on.
  // Needs n to be a multiple of 16.
  kGate,
};

// kGate's f(v) = v * sigmoid(v * (linear + cubic * v * v)): SiLU as it stands. Gelu's tanh form is
// another, since (1 + tanh(u)) / 2 = sigmoid(2 u): Hendrycks and Gimpel 2016, arXiv:1606.08415.
struct GateFunction {
  float linear = 1, cubic = 0;
};
constexpr GateFunction kSiluGate{};
constexpr GateFunction kGeluTanhGate{2 * 0.7978845608f, 2 * 0.7978845608f * 0.044715f};

struct GemmEnds {
  // Not null: x is [m, k] fp32, and what is multiplied are its rows over their root mean square,
  // times these weights [k], rounded to dtype. Not all products can: PackedGemmTakesNorm().
  const float* norm = nullptr;
  float eps = 0;
  GemmOutput output = GemmOutput::kStore;
  GateFunction gate;
};

}  // namespace babai::cuda
