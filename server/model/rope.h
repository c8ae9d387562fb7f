// Rotary frequencies from the rules that checkpoints name.
//
//   base      inv_i = theta^(-2i / d), i < d/2 (Su et al. 2021, arXiv:2104.09864)
//   linear    inv / factor (Chen et al. 2023, arXiv:2306.15595)
//   dynamic   as base: it differs only beyond the trained context, which is never served
//   llama3    long waves slowed by factor, short ones kept, a blend between
//   yarn      a ramp over dimensions from inv to inv / factor (Peng et al. 2023, arXiv:2309.00071)
//   longrope  inv / per-dimension factors (Ding et al. 2024, arXiv:2402.13753)
//
// Computed in fp32 in the order of the reference implementation, because models were trained with
// those bits.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "server/model/config.h"

namespace babai {

struct RopeRule {
  enum class Kind { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongRope };
  Kind kind = Kind::kDefault;
  int64_t rotary_dim = 0;                            // even, > 0
  double theta = 10000;                              // > 1
  double factor = 1;                                 // > 0
  double original_positions = 0;                     // > 0 for llama3, yarn, longrope
  double max_positions = 0;                          // longrope: the context the model is served at
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3; low < high
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn: round the ramp's ends outward
  double mscale = 0, mscale_all_dim = 0;             // yarn; 0 = absent
  std::optional<double> attention_factor;            // yarn, longrope: replaces the derived one
  std::vector<double> short_factor, long_factor;     // longrope, [rotary_dim / 2], > 0
};

// The rule's numbers must be in the ranges above.
Rope MakeRope(const RopeRule& rule);

}  // namespace babai
