// The host's part of wide_division.h, and the plan.
#include <algorithm>
#include <limits>

#include "kernels/cuda/wide_division.h"

namespace babai::cuda {
namespace {

constexpr int kLeastStages = 2, kMaxStages = 32;  // barriers of as many lie before the ring

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Tiles(const PackedShape& s, int m, const WideGemmPlan& plan) {
  return CeilDiv(s.n, plan.rows) * CeilDiv(m, plan.tokens);
}
// Tiles that a cluster has to itself. Where tiles are shared, so is one of each cluster's, lest all
// pieces of a tile end at once.
int64_t Rounds(int64_t tiles, const WideGemmPlan& plan) {
  return plan.shared ? std::max<int64_t>(tiles / plan.clusters - 1, 0)
                     : CeilDiv(tiles, plan.clusters);
}

// Clusters for each tile, if so many have its pieces and no others', one each; else 0.
int64_t Pieces(int64_t tiles, const WideGemmPlan& plan) {
  return plan.shared && plan.clusters % tiles == 0 ? plan.clusters / tiles : 0;
}
// The k tiles that the last of them has more than the others.
int64_t Lead(const PackedShape& s, int64_t tiles, const WideGemmPlan& plan) {
  const int64_t of_block = plan.tokens >= 128 ? 4 : 0;  // with fewer tokens it gains nothing
  const int64_t pieces = Pieces(tiles, plan), lead = of_block * plan.parts;
  return pieces > 0 && s.k_tiles() >= lead + pieces ? lead : 0;
}

Divisor DivisorOf(int64_t by) {
  return {static_cast<uint32_t>(by), static_cast<uint32_t>(((int64_t{1} << 32) + by - 1) / by)};
}

// Kinds of tiles and the time a block takes for a k tile of 128 columns, W4 on an H200 under load.
struct TileKind {
  int tokens, rows;
  double us;
};
constexpr TileKind kTileKinds[] = {
    {32, 128, 0.40}, {32, 192, 0.525}, {32, 256, 0.64},  {64, 128, 0.525}, {64, 192, 0.64},
    {64, 256, 0.82}, {128, 128, 0.71}, {128, 256, 1.31}, {192, 128, 0.99}, {256, 128, 1.31}};

constexpr int kGoodStages = 3;

// What a launch takes with this plan, as measured on an H200: what comes before and after the
// products grows with the tile, and so does adding up. With two stages the products wait (W8).
double EstimatedUs(const PackedShape& s, int m, const WideGemmPlan& plan, double us) {
  const double sums = static_cast<double>(plan.rows) * plan.tokens, add = 0.3 + 3e-5 * sums;
  const int64_t tiles = Tiles(s, m, plan), rounds = Rounds(tiles, plan);
  if (plan.stages < kGoodStages) us *= 1.25;
  int64_t k_tiles = rounds * s.k_tiles();
  double total = 2.0 + 6e-5 * sums;
  if (const int64_t pieces = Pieces(tiles, plan); pieces > 0) {
    const int64_t lead = Lead(s, tiles, plan);
    k_tiles = CeilDiv(s.k_tiles() - lead, pieces) + lead;
    total += add * static_cast<double>(pieces - 1);
  } else if (plan.shared) {
    k_tiles += CeilDiv((tiles - rounds * plan.clusters) * s.k_tiles(), plan.clusters);
    total += 3.0 + 3e-4 * sums;
  }
  if (plan.parts > 1) total += add;
  return total + us * static_cast<double>(CeilDiv(k_tiles, plan.parts));
}

// Units as large as leave enough stages, and as many stages as fit.
void DivideShared(const PackedShape& s, int64_t shared_bytes, WideGemmPlan* plan) {
  const auto fitting = [&] { return (shared_bytes - kWideRing) / BytesOfStage(s, *plan); };
  plan->unit_tiles = plan->tokens <= 64 ? 4 : 1;
  while (plan->unit_tiles > 1 && fitting() < kGoodStages) plan->unit_tiles /= 2;
  plan->stages = static_cast<int>(std::clamp<int64_t>(fitting(), kLeastStages, kMaxStages));
}

}  // namespace

int64_t WeightBytesOfStage(const PackedShape& shape, const WideGemmPlan& plan) {
  constexpr int64_t kOperandAlignment = 1024;
  const int64_t records = int64_t{plan.rows} / kStripRows * plan.unit_tiles;
  return CeilDiv(records * shape.record_bytes(), kOperandAlignment) * kOperandAlignment;
}
int64_t BytesOfStage(const PackedShape& shape, const WideGemmPlan& plan) {
  return WeightBytesOfStage(shape, plan) + int64_t{plan.unit_tiles} * plan.tokens * kTileCols * 2;
}

bool CanDivide(const PackedShape& shape, int m, const WideGemmPlan& plan) {
  const int64_t tiles = Tiles(shape, m, plan);
  if (plan.clusters > (plan.shared ? tiles * shape.k_tiles() : tiles)) return false;
  return plan.parts == 1 || plan.clusters == tiles || Pieces(tiles, plan) > 0;
}

WideDivision DivisionOf(const PackedShape& shape, int m, const WideGemmPlan& plan) {
  const int64_t tiles = Tiles(shape, m, plan), rounds = Rounds(tiles, plan);
  WideDivision d;
  d.clusters = plan.clusters, d.parts = plan.parts, d.k_tiles = shape.k_tiles();
  while (1 << d.unit_shift < plan.unit_tiles) ++d.unit_shift;
  const bool even = plan.shared || tiles % plan.clusters == 0;
  d.rounds = static_cast<int>(rounds);
  d.short_from = even ? plan.clusters : static_cast<int>(tiles % plan.clusters);
  if (plan.shared) {
    const int64_t shared = tiles - rounds * plan.clusters, lead = Lead(shape, tiles, plan);
    d.share = CeilDiv(shared * (shape.k_tiles() - lead) << 32, plan.clusters);
    d.lead = static_cast<int>(lead);
    if (lead > 0) d.by_pieces = DivisorOf(Pieces(tiles, plan));
  }
  d.by_k_tiles = DivisorOf(shape.k_tiles()), d.by_token_tiles = DivisorOf(CeilDiv(m, plan.tokens));
  return d;
}

int64_t WideGemmSharedBytes(const PackedShape& shape, const WideGemmPlan& plan) {
  return kWideRing + plan.stages * BytesOfStage(shape, plan);
}

WideGemmPlan PlanWideGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes) {
  constexpr int kMostPieces = 4;  // of a tile
  WideGemmPlan best;
  double best_us = std::numeric_limits<double>::infinity();
  for (const TileKind& kind : kTileKinds) {
    WideGemmPlan plan{kind.tokens, kind.rows};
    DivideShared(shape, shared_bytes, &plan);
    const int tiles = static_cast<int>(Tiles(shape, m, plan));
    const auto consider = [&](int parts, int clusters, bool shared) {
      if (clusters * parts > sms) return;
      plan.parts = parts, plan.clusters = clusters, plan.shared = shared;
      const double us = EstimatedUs(shape, m, plan, kind.us);
      if (us < best_us) best = plan, best_us = us;
    };
    consider(1, std::min(tiles, sms), false);
    if (tiles % sms != 0 && tiles * shape.k_tiles() >= sms) consider(1, sms, true);
    for (int pieces = 1; pieces <= std::min(kMostPieces, shape.k_tiles() / 2); ++pieces) {
      for (const int parts : {1, 2}) consider(parts, tiles * pieces, pieces > 1);
    }
  }
  return best;
}

}  // namespace babai::cuda
