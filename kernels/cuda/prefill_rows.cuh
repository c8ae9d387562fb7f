// What both kernels of PrefillAttention() share: the rows of a block and the keys they see.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace babai::cuda {

// The block's tile. Later ones see more keys: they start first.
__device__ __forceinline__ PrefillTile PrefillTileOf(const PrefillTile* tiles) {
  return tiles[gridDim.x - 1 - blockIdx.x];
}

// A block's rows: pairs (token, head of the group), tokens first.
struct PrefillRows {
  int group, first, count;  // of them
  AttentionSequence s;

  __device__ PrefillRows(const AttentionArgs& a, const PrefillTile& tile)
      : group(a.heads / a.cache.kv_heads),
        first(tile.tile * kPrefillRows),
        s(a.sequences[tile.sequence]) {
    count = min(kPrefillRows, s.rows * group - first);
  }
  __device__ int Token(int r) const { return (first + r) / group; }
  __device__ int Head(int r) const { return (first + r) % group; }
  __device__ int Position(int r) const { return s.start + Token(r); }
};

// The keys [first, end) that any of the rows sees.
struct PrefillKeys {
  int least, most;  // positions of the rows
  int first, end;

  __device__ PrefillKeys(const AttentionArgs& a, const PrefillRows& rows)
      : least(rows.Position(0)), most(rows.Position(rows.count - 1)) {
    first = a.window > 0 ? max(0, least - a.window + 1) : 0, end = most + 1;
  }
  // Whether every row sees all of `keys` keys from key0 on.
  __device__ bool Whole(int key0, int keys, int window) const {
    return key0 + keys <= least + 1 && (window == 0 || key0 > most - window);
  }
};

// Scores of a warp's 16 rows against the keys from key0 on; position: of a lane's two.
template <int kEights>
__device__ __forceinline__ void Mask(float (&s)[kEights][4], const AttentionArgs& a, int key0,
                                     const int (&position)[2], int lane) {
#pragma unroll
  for (int n = 0; n < kEights; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + n * 8 + lane % 4 * 2 + i % 2, p = position[i / 2];
      if (key > p || (a.window > 0 && key <= p - a.window)) s[n][i] = kMinusInfinity;
    }
  }
}

}  // namespace babai::cuda
