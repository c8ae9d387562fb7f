// PrefillAttention() on Hopper, by warpgroup products.
//
//   regime    chunks of prompts, heads up to 128 wide
//   roof      4 heads head_dim operations for each query and key over the tensor cores' rate
//   method    two warpgroups of 64 rows (token, head) a block and one that copies: keys and values,
//             128 at a time, through rings of three tiles each in shared memory. Queries and
//             weights are operands in registers. The scores of a tile are under way while the
//             values of the tile before are added up, and its softmax then (Shah et al. 2024,
//             arXiv:2407.08608)
//   limits    sm_90a; head_dim a multiple of 8, up to 128; rows of q begin at even elements
//   numerics  as PrefillAttention()'s
//   measured  docs/perf/cuda_decode.md
#pragma once

#include "kernels/cuda/attention.h"

namespace babai::cuda {

// Whether this device and kernel can.
bool WideAttentionTakes(const AttentionArgs& args);

cudaError_t WideAttention(const AttentionArgs& args, const PrefillTile* tiles, int count,
                          const Queue& queue);

}  // namespace babai::cuda
