// Second moments of a linear's inputs: the only thing that calibration leaves behind.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/token_products.h"
#include "kernels/formats/rotation.h"

namespace babai {

// H = sum x x' / tokens. Accumulated in fp32 products with fp64 masters
// (kernels/cpu/token_products.h). Not thread-safe; one per input group. The pool must outlive it.
class Moments {
 public:
  Moments(int64_t k, ThreadPool& pool);
  // x [tokens, k] row-major fp32. FailedPrecondition CALIBRATION_NON_FINITE: x holds a NaN or
  // infinity; the moments are then of no use.
  absl::Status Add(const float* x, int64_t tokens);
  int64_t k() const { return k_; }
  int64_t tokens() const { return tokens_; }
  // H [k, k] row-major, symmetric, fp64.
  std::vector<double> Hessian() const;

 private:
  int64_t k_, tokens_ = 0;
  ThreadPool& pool_;
  cpu::TokenPanels panels_;
  std::vector<double> gram_;  // lower triangle of sum x x'
};

// Means over the first and the second half of the tokens, and the first's share of them.
struct Halves {
  std::vector<double> first, second;
  double first_share = 0;
};

// How the inputs of the original model, x, differ from those of the partly quantized one, y, of the
// same tokens: d = x - y.
//   cross = E[d y'],  gram = E[d d'],  [k, k] row-major fp64
struct Drift {
  int64_t k = 0, tokens = 0;
  Halves cross;
  std::vector<double> gram;  // empty unless asked for
};

// How the residual streams differ, r of the original model minus that of the quantized one, beside
// the same inputs: cross = E[r y'] and mixed = E[r d'], [n, k]; energy = E[r'r].
struct ResidualDrift {
  int64_t n = 0, k = 0, tokens = 0;
  Halves cross;
  std::vector<double> mixed;  // empty unless asked for
  double energy = 0;          // likewise
};

// Accumulates both. Not thread-safe.
class DriftMoments {
 public:
  // `rows` = 0: no residual stream. The first `first_half` tokens added are the first half: make
  // the halves as unlike as other data would be, for neighbours in a text are alike. `energy`:
  // gram, mixed and energy too. The pool must outlive it.
  DriftMoments(int64_t k, int64_t rows, int64_t first_half, bool energy, ThreadPool& pool);
  // quantized and original [tokens, k]: the inputs; residuals [tokens, rows], unread if rows = 0.
  // Fails like Moments::Add.
  absl::Status Add(const float* quantized, const float* original, const float* residual_quantized,
                   const float* residual_original, int64_t tokens);
  Drift drift() const;
  ResidualDrift residual() const;

 private:
  absl::Status AddPart(int half, const float* quantized, const float* original,
                       const float* residual_quantized, const float* residual_original,
                       int64_t tokens);
  Halves MeanHalves(const std::vector<double> (&sums)[2]) const;
  int64_t tokens() const { return tokens_[0] + tokens_[1]; }

  int64_t k_, rows_, first_half_;
  bool energy_wanted_;
  ThreadPool& pool_;
  cpu::TokenPanels inputs_, drift_, residual_;
  int64_t tokens_[2] = {0, 0};
  std::vector<double> cross_[2], residual_cross_[2], gram_, residual_mixed_;
  double energy_ = 0;
};

// The same moments of rotated inputs. In place.
void RotateDrift(const Rotation& in, Drift& drift);
void RotateDrift(const Rotation& in, ResidualDrift& drift);

}  // namespace babai
