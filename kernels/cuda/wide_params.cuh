// What the kernel of wide_gemm.h is made for and told, and which part of the work a block has.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {

// Two of them idle: registers change hands by whole warpgroups.
constexpr int kWideCopyWarps = 4;

// Of scales, to what NormedScale takes: times two powers of two, as pairs for rows g and g + 8;
// what comes of it is too small by `factor`.
struct ScaleNorm {
  uint32_t first, second;
  float factor;
};

// Division by a number the host knows: where a thread begins, code is fetched as slowly as it is
// run, and a division is much of it.
struct Divisor {
  uint32_t by = 1, inverse = 0;  // 2^32 / by, rounded up

  // Exact up to 2^32 / by.
  __device__ __forceinline__ int Quotient(int v) const {
    return by == 1 ? v : static_cast<int>(__umulhi(v, inverse));
  }
};

// What the host works out once a launch.
struct WideGemmParams {
  const uint8_t* weights;
  void* y;
  uint32_t* workspace;
  GemmEnds ends;
  int m, n;
  int rows;                                 // of a tile
  int strips, k_tiles, unit_shift, stages;  // unit_shift: log2 of k tiles a stage
  int clusters, parts;
  int rounds;      // tiles that a cluster has to itself
  int short_from;  // but clusters from this one on have one less
  // A cluster's part of the k tiles of the tiles after those, which all share; times 2^32, rounded
  // up.
  uint64_t share;
  // Clusters that have a tile's pieces, and no others', one each; the last, which adds up what the
  // others have left, has so many k tiles more.
  int lead;
  Divisor by_pieces, by_k_tiles, by_token_tiles;
  int reload;       // how often a k tile loads a scale: 1, 2, 4; 0: one group a row
  int group_shift;  // log2 of the steps of 16 columns that share one
  bool asymmetric;
  uint32_t exponent;  // GroupScale::kExponent: dequant.cuh says why it is not a constant
  ScaleNorm norm;     // where kNormed says so
  int record_bytes, tile_bytes, zeros_offset;  // zeros_offset: of a tile's zeros behind its scales
  int64_t strip_bytes, row_scales, row_zeros;
  int stage_bytes, x_offset;  // in shared memory: of a stage, x in it

  // Where the block is: `parts` is 1 or 2.
  __device__ __forceinline__ int Cluster() const { return blockIdx.x >> (parts - 1); }
  __device__ __forceinline__ int Part() const { return blockIdx.x & (parts - 1); }
  // The first of a cluster's shared k tiles.
  __device__ __forceinline__ int FirstShared(int cluster) const {
    return static_cast<int>(cluster * share >> 32) + lead * by_pieces.Quotient(cluster);
  }
};
constexpr int kWideRing = 1024;  // its offset, behind the barriers: operand B wants multiples

// Tiles of kTokens tokens; a warpgroup multiplies 64 rows. At few tokens one kernel does for all
// numbers of rows up to kMostRows: where one product follows another, its code is there already.
template <int kTokens_, int kMostRows>
struct WideShape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kEights = kTokens / 8, kSums = kTokens / 2;  // of a lane
  static constexpr int kMostThreads = kMostRows * 2 + kWideCopyWarps * kLanes;
  // What the copying warps have given, shared out: 24 + 2 x 240 <= 3 x 168, 24 + 4 x 112 <= 5 x 96.
  // More would wait for ever.
  static constexpr int kRegisters = kMostRows == 128 ? 240 : 112;
  // Groups of products under way while the next fragments are made; the largest tile leaves no
  // registers for it, and there the other warpgroups' products fill the time.
  static constexpr int kPending = kMostRows == 256 && kTokens == 128 ? 0 : 1;

  static __device__ __forceinline__ int Rows(const WideGemmParams& p) {
    return kTokens <= 64 ? p.rows : kMostRows;
  }
  static __device__ __forceinline__ int Multipliers(const WideGemmParams& p) { return Rows(p) * 2; }
};

// What, besides the width, picks the kernel.
struct WideGemmFormat {
  int tokens;
  Dtype dtype;
};

// What a block does at a time: a stretch of k of a tile. Its pieces of shared tiles are numbered
// from their end on, so that what a cluster leaves to later ones, the beginning of its last tile,
// comes first.
struct WidePiece {
  int row_tile, token_tile;
  int shared = -1;  // the tile's first k tile among those shared; negative: it is not
  int k_begin, k_tiles, units;
  bool ends;  // with the tile: the sums of all its pieces come together here

  static __device__ __forceinline__ int Count(const WideGemmParams& p) {
    const int rounds = p.rounds - (p.Cluster() < p.short_from ? 0 : 1);
    const int low = p.FirstShared(p.Cluster()), high = p.FirstShared(p.Cluster() + 1);
    if (low == high) return rounds;
    return rounds + p.by_k_tiles.Quotient(high - 1) - p.by_k_tiles.Quotient(low) + 1;
  }
  __device__ __forceinline__ WidePiece(const WideGemmParams& p, int i) {
    int tile = p.Cluster() + i * p.clusters, begin = 0, end = p.k_tiles;
    if (i >= p.rounds) {
      const int low = p.FirstShared(p.Cluster()), high = p.FirstShared(p.Cluster() + 1);
      tile = p.by_k_tiles.Quotient(high - 1) - (i - p.rounds);
      shared = tile * p.k_tiles;
      begin = max(low - shared, 0), end = min(high - shared, p.k_tiles);
      tile += p.rounds * p.clusters;
    }
    row_tile = p.by_token_tiles.Quotient(tile);
    token_tile = tile - row_tile * static_cast<int>(p.by_token_tiles.by);
    ends = end == p.k_tiles;
    const int of_part = (end - begin + p.parts - 1) >> (p.parts - 1);
    k_begin = min(begin + p.Part() * of_part, end);
    k_tiles = min(of_part, end - k_begin);
    units = (k_tiles + (1 << p.unit_shift) - 1) >> p.unit_shift;
  }
  __device__ __forceinline__ int Tiles(const WideGemmParams& p, int unit) const {
    return min(1 << p.unit_shift, k_tiles - (unit << p.unit_shift));
  }
  // Of the clusters that share the tile, each from the end of the one before it on, the first.
  __device__ __forceinline__ int FirstCluster(const WideGemmParams& p) const {
    int cluster = p.Cluster();
    while (shared >= 0 && p.FirstShared(cluster) > shared) --cluster;
    return cluster;
  }
};

// Where in the ring.
struct WideStage {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

}  // namespace babai::cuda
