// How the blocks of wide_gemm.h share out a product: some whole tiles each, then stretches of k of
// the tiles that are left (Stream-K, Osama et al. 2023, arXiv:2301.03598). Plain constexpr C++: the
// host works it out once a launch, the device goes through it.
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {

// Division by a number the host knows: where a thread begins, code is fetched as slowly as it is
// run, and a division is much of it.
struct Divisor {
  uint32_t by = 1, inverse = 0;  // 2^32 / by, rounded up

  // Exact up to 2^32 / by.
  constexpr int Quotient(int v) const {
    return by == 1 ? v : static_cast<int>(uint64_t{static_cast<uint32_t>(v)} * inverse >> 32);
  }
};

struct WideDivision {
  int clusters = 0, parts = 0;      // parts: 1 or 2 blocks a cluster
  int k_tiles = 0, unit_shift = 0;  // unit_shift: log2 of k tiles a stage
  int rounds = 0;                   // tiles that a cluster has to itself
  int short_from = 0;               // but clusters from this one on have one less
  // A cluster's part of the k tiles of the tiles after those, which all share; times 2^32, rounded
  // up.
  uint64_t share = 0;
  // Clusters that have a tile's pieces, and no others', one each; the last, which adds up what the
  // others have left, has so many k tiles more.
  int lead = 0;
  Divisor by_pieces, by_k_tiles, by_token_tiles;

  constexpr int Cluster(int block) const { return block >> (parts - 1); }
  constexpr int Part(int block) const { return block & (parts - 1); }
  // The first of a cluster's shared k tiles.
  constexpr int FirstShared(int cluster) const {
    return static_cast<int>(cluster * share >> 32) + lead * by_pieces.Quotient(cluster);
  }
};

// What a block does at a time: a stretch of k of a tile. Its pieces of shared tiles are numbered
// from their end on, so that what a cluster leaves to later ones, the beginning of its last tile,
// comes first: nobody waits for a later cluster, which might not run yet.
struct WidePiece {
  int row_tile = 0, token_tile = 0;
  int shared = -1;  // the tile's first k tile among those shared; negative: it is not
  int k_begin = 0, k_tiles = 0, units = 0;
  bool ends = false;  // with the tile: the sums of all its pieces come together here

  static constexpr int Count(const WideDivision& d, int block) {
    const int cluster = d.Cluster(block), rounds = d.rounds - (cluster < d.short_from ? 0 : 1);
    const int low = d.FirstShared(cluster), high = d.FirstShared(cluster + 1);
    if (low == high) return rounds;
    return rounds + d.by_k_tiles.Quotient(high - 1) - d.by_k_tiles.Quotient(low) + 1;
  }
  constexpr WidePiece(const WideDivision& d, int block, int i) {
    const int cluster = d.Cluster(block);
    int tile = cluster + i * d.clusters, begin = 0, end = d.k_tiles;
    if (i >= d.rounds) {
      const int low = d.FirstShared(cluster), high = d.FirstShared(cluster + 1);
      tile = d.by_k_tiles.Quotient(high - 1) - (i - d.rounds);
      shared = tile * d.k_tiles;
      if (low > shared) begin = low - shared;
      if (high - shared < end) end = high - shared;
      tile += d.rounds * d.clusters;
    }
    row_tile = d.by_token_tiles.Quotient(tile);
    token_tile = tile - row_tile * static_cast<int>(d.by_token_tiles.by);
    ends = end == d.k_tiles;
    const int of_part = (end - begin + d.parts - 1) >> (d.parts - 1);
    k_begin = Least(begin + d.Part(block) * of_part, end);
    k_tiles = Least(of_part, end - k_begin);
    units = (k_tiles + (1 << d.unit_shift) - 1) >> d.unit_shift;
  }
  // Of a unit.
  constexpr int Tiles(const WideDivision& d, int unit) const {
    return Least(1 << d.unit_shift, k_tiles - (unit << d.unit_shift));
  }
  // Of the clusters that share the tile, each from the end of the one before it on, the first.
  constexpr int FirstCluster(const WideDivision& d, int block) const {
    int cluster = d.Cluster(block);
    while (shared >= 0 && d.FirstShared(cluster) > shared) --cluster;
    return cluster;
  }

 private:
  static constexpr int Least(int a, int b) { return a < b ? a : b; }
};

// Whether there is work for each cluster, and where clusters have two blocks, one piece a cluster.
bool CanDivide(const PackedShape& shape, int m, const WideGemmPlan& plan);
// Requires CanDivide().
WideDivision DivisionOf(const PackedShape& shape, int m, const WideGemmPlan& plan);

// Of a stage of the ring: the records of W, a multiple of 1024 bytes, and x behind them.
int64_t WeightBytesOfStage(const PackedShape& shape, const WideGemmPlan& plan);
int64_t BytesOfStage(const PackedShape& shape, const WideGemmPlan& plan);

constexpr int kWideRing = 1024;  // its offset, behind the barriers: operand B wants multiples

}  // namespace babai::cuda
