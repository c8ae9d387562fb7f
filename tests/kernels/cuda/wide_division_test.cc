// The division of work among wide_gemm.h's blocks, gone through on the host: every k tile of every
// tile belongs to one block, and what blocks leave is what others add up.
#include "kernels/cuda/wide_division.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace babai::cuda {
namespace {

constexpr int kSms = 132;
constexpr int64_t kSharedBytes = 227 << 10;

PackedShape Shape(int n, int k) { return {n, k, 4, 128, false}; }

// Of a tile: how often its k tiles come up, the clusters that leave sums, in their order, and who
// adds up which.
struct Tile {
  std::vector<int> k_tiles;
  std::vector<int> left, added;
  int ends = 0;
};

void ExpectAllDoneOnce(const PackedShape& shape, int m, const WideGemmPlan& plan) {
  SCOPED_TRACE(testing::Message() << shape.n << " x " << shape.k << ", " << m
                                  << " tokens, tiles of " << plan.rows << " x " << plan.tokens
                                  << ", " << plan.clusters << (plan.shared ? " sharing" : "")
                                  << " clusters of " << plan.parts << ", " << plan.unit_tiles
                                  << " k tiles a stage");
  ASSERT_TRUE(CanDivide(shape, m, plan));
  const WideDivision d = DivisionOf(shape, m, plan);
  const int token_tiles = (m + plan.tokens - 1) / plan.tokens;
  const int row_tiles = (shape.n + plan.rows - 1) / plan.rows;
  std::vector<Tile> tiles(row_tiles * token_tiles);
  for (Tile& tile : tiles) tile.k_tiles.resize(shape.k_tiles());
  for (int block = 0; block < plan.clusters * plan.parts; ++block) {
    const int pieces = WidePiece::Count(d, block), cluster = d.Cluster(block);
    ASSERT_GE(pieces, 1);
    ASSERT_TRUE(plan.parts == 1 || pieces == 1);
    for (int i = 0; i < pieces; ++i) {
      const WidePiece piece(d, block, i);
      ASSERT_TRUE(piece.row_tile >= 0 && piece.row_tile < row_tiles);
      ASSERT_TRUE(piece.token_tile >= 0 && piece.token_tile < token_tiles);
      Tile& tile = tiles[piece.row_tile * token_tiles + piece.token_tile];
      int k = piece.k_begin;
      for (int unit = 0; unit < piece.units; ++unit) {
        for (int t = 0; t < piece.Tiles(d, unit); ++t) ++tile.k_tiles.at(k++);
      }
      ASSERT_EQ(k, piece.k_begin + piece.k_tiles);
      if (d.Part(block) > 0) continue;
      if (piece.ends) {
        ++tile.ends;
        for (int c = piece.FirstCluster(d, block); c < cluster; ++c) tile.added.push_back(c);
      } else {
        // One place for each, written before anything that has to wait.
        ASSERT_EQ(i, d.rounds);
        tile.left.push_back(cluster);
      }
    }
  }
  for (const Tile& tile : tiles) {
    ASSERT_EQ(std::count(tile.k_tiles.begin(), tile.k_tiles.end(), 1), shape.k_tiles());
    ASSERT_EQ(tile.ends, 1);
    ASSERT_EQ(tile.left, tile.added);
  }
}

TEST(WideDivisionTest, EveryPlanDoesAllOnce) {
  for (const int n : {32, 160, 700, 1536, 4096, 6144, 28672, 128256}) {
    for (const int k : {32, 160, 576, 1536, 4096, 11008, 14336, 65536}) {
      for (const int m : {17, 33, 64, 96, 129, 256, 512, 777, 2048}) {
        if (int64_t{n} * m > 60'000'000) continue;
        const PackedShape shape = Shape(n, k);
        for (const int64_t bytes : {kSharedBytes, kSharedBytes * 2 / 3}) {
          const WideGemmPlan plan = PlanWideGemm(shape, m, kSms, bytes);
          ASSERT_LE(plan.clusters * plan.parts, kSms);
          ASSERT_LE(WideGemmSharedBytes(shape, plan), bytes);
          ExpectAllDoneOnce(shape, m, plan);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(WideDivisionTest, EveryNumberOfClustersDoesAllOnce) {
  for (const auto& [tokens, rows] : {std::pair{32, 128}, {64, 192}, {128, 256}}) {
    for (const int k : {128, 2080, 14336}) {
      for (int clusters = 1; clusters <= kSms; ++clusters) {
        for (const bool shared : {false, true}) {
          for (const int parts : {1, 2}) {
            const WideGemmPlan plan{
                tokens, rows, parts, clusters % 3 == 2 ? 4 : clusters % 3 + 1, 2, clusters, shared};
            if (!CanDivide(Shape(1200, k), 270, plan)) continue;
            ExpectAllDoneOnce(Shape(1200, k), 270, plan);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(WideDivisionTest, KnowsWhatCannotBe) {
  const PackedShape shape = Shape(256, 1024);  // two tiles of eight k tiles
  const auto can = [&](int parts, int clusters, bool shared) {
    return CanDivide(shape, 32, {32, 128, parts, 1, 2, clusters, shared});
  };
  EXPECT_TRUE(can(1, 2, false));
  EXPECT_FALSE(can(1, 3, false));
  EXPECT_TRUE(can(1, 16, true));
  EXPECT_FALSE(can(1, 17, true));
  EXPECT_TRUE(can(2, 2, false));
  EXPECT_FALSE(can(2, 1, false));
  EXPECT_TRUE(can(2, 4, true));
  EXPECT_FALSE(can(2, 3, true));
}

}  // namespace
}  // namespace babai::cuda
