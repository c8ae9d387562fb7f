// One layer's paged key/value cache on the device, fp16.
//
//   k, v   [blocks, kv_heads, block_size, stride()], stride() head_dim rounded up to 8 values, so
//          that a row is whole 16-byte pieces; what is past head_dim is 0
//   slot   a position of the cache: block * block_size + place in the block
//
// Zeroed once when made: no kernel writes past head_dim.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace babai::cuda {

struct KvCache {
  __half* k = nullptr;
  __half* v = nullptr;
  int kv_heads = 0, head_dim = 0, block_size = 0;

  __host__ __device__ int stride() const { return (head_dim + 7) / 8 * 8; }
  __host__ __device__ int64_t block_values() const {
    return int64_t{kv_heads} * block_size * stride();
  }
  // Of k or v, in values.
  __host__ __device__ int64_t RowAt(int64_t slot, int kv_head) const {
    const int64_t block = slot / block_size, place = slot % block_size;
    return block * block_values() + (int64_t{kv_head} * block_size + place) * stride();
  }
};

}  // namespace babai::cuda
