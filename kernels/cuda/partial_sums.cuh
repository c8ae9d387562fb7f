// Sums that blocks sharing a tile pass on through the workspace: a word that is all ones has not
// been written yet, since arithmetic makes no such NaN. No flag, fence or counter.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace babai::cuda {

constexpr uint32_t kUnwritten = 0xffffffff;

// Four sums of a lane.
__device__ __forceinline__ void StorePartialSums(uint32_t* to, const float (&sums)[4]) {
  StoreRelaxed4(to, make_uint4(__float_as_uint(sums[0]), __float_as_uint(sums[1]),
                               __float_as_uint(sums[2]), __float_as_uint(sums[3])));
}

// What another block has left, kCount fours `next` words apart: waits for all of them and adds them
// to `sums`. What was read is put back to all ones for the next launch.
template <int kCount>
__device__ __forceinline__ void AddPartialSums(uint32_t* from, int next, float* sums) {
  uint32_t v[kCount][4];
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const uint4 four = LoadRelaxed4(from + e * next);
      v[e][0] = four.x, v[e][1] = four.y, v[e][2] = four.z, v[e][3] = four.w;
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
#pragma unroll
      for (int j = 0; j < 4; ++j) missing |= v[e][j] == kUnwritten;
    }
  } while (missing);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[e * 4 + j] += __uint_as_float(v[e][j]);
    *reinterpret_cast<uint4*>(from + e * next) =
        make_uint4(kUnwritten, kUnwritten, kUnwritten, kUnwritten);
  }
}

}  // namespace babai::cuda
