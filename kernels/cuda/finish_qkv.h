// What stands between the q, k, v products and attention: biases, norms of each head, rotary
// embedding; q stays in place, k and v go to the cache.
//
//   regime    any number of tokens; a warp for each head of a token
//   roof      q read and written, k and v read once and written to the cache
//   limits    head_dim up to 256
//   numerics  fp32 between the read and the write. A token depends on itself alone
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/kv_cache.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

// Rows of a merged product: `stride` values from one token to the next.
struct RowsOf {
  const void* data = nullptr;
  int64_t stride = 0;
};

struct FinishQkvArgs {  // device pointers
  void* q;              // [count, heads * head_dim] of dtype; overwritten
  int64_t q_stride;
  RowsOf k, v;                            // [count, kv_heads * head_dim] of dtype
  const float *q_bias, *k_bias, *v_bias;  // or null
  const float *q_norm, *k_norm;           // [head_dim], or null
  const float2* angles;                   // of this rope; null: none
  int pairs;                              // it turns features (i, i + pairs), i < pairs
  int64_t angle_stride;                   // values of a token
  const int32_t* slots;                   // [count]; negative: k and v are dropped
  KvCache cache;
  int count, heads;
  float eps;
  Dtype dtype;
};

cudaError_t FinishQkv(const FinishQkvArgs& args, const Queue& queue);

}  // namespace babai::cuda
