// Quantizing one linear layer: the layer-wise problem min tr((W* - Q) H (W* - Q)').
//
// With H + damping = L L' (L lower), ||(W* - Q) L||^2 is a closest-vector problem for each row;
// Babai's nearest plane goes from the last column to the first: u_j = Y_j / (L_jj s_j), z_j =
// round(u_j), Y_{1..j} -= s_j z_j L[j, 1..j]. GPTQ is the same loop in the reverse order. Source:
// Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm",
// arXiv:2507.18553; GPTQ, arXiv:2210.17323. W* is the weight itself, or one that also makes up for
// the inputs' drift (target.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/packed_linear.h"
#include "server/quant/factor.h"
#include "server/quant/moments.h"
#include "server/quant/recipe.h"

namespace babai {

// One linear layer and what is known about its inputs. Nothing is owned.
struct LinearProblem {
  absl::Span<const float> w;  // [n, k] row-major
  int64_t n = 0, k = 0;
  // Of the inputs; null only where the recipe needs no moments (then losses are of H = I). In the
  // basis of `in`.
  const Factor* factor = nullptr;
  // How the original model's inputs differ, in the basis of `in`; null: not at all.
  const Drift* drift = nullptr;
  // How the residual stream that the output is added to differs; null: not at all.
  const ResidualDrift* residual = nullptr;
  Rotation in, out;  // of the stored weight; packed_linear.h
};

// The certificate of a linear. Losses are of the damped objective towards W*, summed over rows.
struct Certificate {
  double proxy_loss = 0;  // tr((W* - Q)(H + damping)(W* - Q)'); a sweep's sum of the final |Y|^2
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
  double alpha = 0;     // share of the inputs' drift that W* takes up
  double outliers = 0;  // fraction of the weights stored as sparse values
};

struct QuantizedLinear {
  PackedLinear packed;
  Certificate certificate;
};

// Quantizes a linear by the recipe, with recipe.bits or recipe.target_bits for this linear. Rows
// are split over the pool; the result does not depend on its size. `stop` is polled between tiles;
// when it returns true the call returns Cancelled. InvalidArgument: a field or shape that does not
// fit. FailedPrecondition HESSIAN_NOT_POSITIVE_DEFINITE: inputs beyond fp32. ResourceExhausted: no
// memory.
absl::StatusOr<QuantizedLinear> QuantizeLinear(const LinearProblem& problem, const Recipe& recipe,
                                               ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
