// Quantizing one linear layer: the layer-wise problem min tr((W - Q) H (W - Q)').
//
// With H + damping = L L' (L lower), ||(W - Q) L||^2 is a closest-vector problem for each row;
// Babai's nearest plane goes from the last column to the first: u_j = Y_j / (L_jj s_j), z_j =
// round(u_j), Y_{1..j} -= s_j z_j L[j, 1..j]. GPTQ is the same loop in the reverse order. Source:
// Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm",
// arXiv:2507.18553; GPTQ, arXiv:2210.17323.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/packed_int.h"
#include "server/quant/recipe.h"

namespace babai {

// Second moment of a linear's inputs: H = sum x x' / tokens. Accumulated in fp32 products with fp64
// masters. Not thread-safe; one per input group.
class Moments {
 public:
  explicit Moments(int64_t k);
  ~Moments();
  Moments(Moments&&) noexcept;
  // x [tokens, k] row-major fp32. FailedPrecondition CALIBRATION_NON_FINITE: x holds a NaN or
  // infinity.
  absl::Status Add(const float* x, int64_t tokens);
  int64_t k() const;
  int64_t tokens() const;
  // H [k, k] row-major, symmetric, fp64.
  std::vector<double> Hessian() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// H after dead columns, ordering and damping, factored once for all the linears of an input group.
//
// An input whose activity diag(H) is below 1/1000 of the MEDIAN is dead: its row and column of H
// are cut off (its diagonal stays, floored there), so that its weights are rounded to the nearest
// value and neither pass errors on nor take any. They are still stored: nothing is lost if it wakes
// up.
struct Factor {
  int64_t k = 0;
  // order[p] = original column at position p; the sweep goes from k-1 to 0
  std::vector<int32_t> order;
  std::vector<double> l;       // [k, k] row-major lower Cholesky factor, in sweep order
  std::vector<double> diag_h;  // diag of the undamped H, original order
  double damping = 0;          // absolute value added to the diagonal
  int damping_doublings = 0;   // 0 unless the first factorization failed
  int64_t dead_columns = 0;
};
// Factors `hessian` [k, k] (symmetric) with `damping` times its mean diagonal added.
// FailedPrecondition HESSIAN_NOT_POSITIVE_DEFINITE: no factor after 6 doublings of the damping, or
// H is all zero.
absl::StatusOr<Factor> FactorHessian(std::vector<double> hessian, Order order, double damping);

// The certificate of a linear. Losses are of the damped objective, summed over rows.
struct Certificate {
  double proxy_loss = 0;       // tr((W - Q)(H + damping)(W - Q)') = sum of the final |Y|^2
  double reference_loss = 0;   // the same with Q = 0
  double relative_error = 0;   // sqrt(proxy_loss / reference_loss)
  double babai_bound = 0;      // 1/4 sum s_j^2 L_jj^2; a guarantee only if nothing was clipped
  double clip_rate = 0;        // fraction of weights outside the grid
  double rate_gap_bits = 0;    // 1/2 log2(mean(L_jj^2) / geomean(L_jj^2))
  double entropy_bits = 0;     // empirical entropy of the codes
  double bits_per_weight = 0;  // everything stored for this linear over its weights
  double damping = 0;
  int damping_doublings = 0;
  int64_t dead_columns = 0;
};

struct QuantizedLinear {
  PackedInt packed;
  Certificate certificate;
};

// Quantizes W [n, k] (row-major fp32). `factor` may be null for Solver::kNearest (then losses are
// of H = I). Rows are split over the pool; the result does not depend on its size. `stop` is polled
// between panels; when it returns true the call returns Cancelled.
absl::StatusOr<QuantizedLinear> QuantizeLinear(absl::Span<const float> w, int64_t n, int64_t k,
                                               const Factor* factor, const Recipe& recipe,
                                               ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
