// Sums that blocks sharing a tile pass on through the workspace: a word that is all ones has not
// been written yet, since arithmetic makes no such NaN. No flag, fence or counter.
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace babai::cuda {

// Four sums of a lane.
__device__ __forceinline__ void StorePartialSums(uint32_t* to, const float (&sums)[4]) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(sums[0]),
               "f"(sums[1]), "f"(sums[2]), "f"(sums[3])
               : "memory");
}

// What kBlocks blocks have left, kCount fours each, `next` words apart, the first block's at `from`
// and each other's `block` words before: waits for all of them and adds them to `sums` in that
// order. What was read is put back to all ones for the next launch. One after another, each would
// cost a way to L2 and back.
template <int kBlocks, int kCount>
__device__ __forceinline__ void AddPartialSums(uint32_t* from, int block, int next, float* sums) {
  constexpr uint32_t kUnwritten = 0xffffffff;
  uint32_t v[kBlocks][kCount][4];
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[b][e][0]), "=r"(v[b][e][1]), "=r"(v[b][e][2]), "=r"(v[b][e][3])
                     : "l"(from - b * block + e * next)
                     : "memory");
      }
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
#pragma unroll
        for (int j = 0; j < 4; ++j) missing |= v[b][e][j] == kUnwritten;
      }
    }
  } while (missing);
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[e * 4 + j] += __uint_as_float(v[b][e][j]);
      *reinterpret_cast<uint4*>(from - b * block + e * next) =
          make_uint4(kUnwritten, kUnwritten, kUnwritten, kUnwritten);
    }
  }
}

}  // namespace babai::cuda
