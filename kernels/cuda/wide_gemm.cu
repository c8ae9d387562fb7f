#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wide_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchWideGemmBits<2>(const WideGemmParams&, const CUtensorMap&,
                                                  const WideGemmFormat&, const cudaLaunchConfig_t&);
extern template cudaError_t LaunchWideGemmBits<3>(const WideGemmParams&, const CUtensorMap&,
                                                  const WideGemmFormat&, const cudaLaunchConfig_t&);
extern template cudaError_t LaunchWideGemmBits<4>(const WideGemmParams&, const CUtensorMap&,
                                                  const WideGemmFormat&, const cudaLaunchConfig_t&);
extern template cudaError_t LaunchWideGemmBits<8>(const WideGemmParams&, const CUtensorMap&,
                                                  const WideGemmFormat&, const cudaLaunchConfig_t&);

namespace {

constexpr int kLeastStages = 2, kMaxStages = 32;  // barriers of as many lie before the ring

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t AlignUp(int64_t v, int64_t to) { return CeilDiv(v, to) * to; }

int64_t WeightsOfStage(const PackedShape& s, const WideGemmPlan& plan) {
  return AlignUp(int64_t{plan.rows} / kStripRows * plan.unit_tiles * s.record_bytes(), 1024);
}
int64_t StageBytes(const PackedShape& s, const WideGemmPlan& plan) {
  return WeightsOfStage(s, plan) + int64_t{plan.unit_tiles} * plan.tokens * kTileCols * 2;
}
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

// Scales below 2^scale_exponent become those below 2^16 that NormedScale wants.
ScaleNorm NormOf(const PackedShape& s) {
  constexpr int kExponentBias = 15, kMantissaBits = 10, kLeast = -14;
  if (s.scale_exponent >= kAnyExponent) return {};
  const auto power = [](int e) {
    return static_cast<uint32_t>(kExponentBias + e) << kMantissaBits;
  };
  const int exponent = std::max(s.scale_exponent, kLeast), up = 16 - exponent, first = up / 2;
  const int row8 = s.bits == 8 ? 0 : s.bits;  // log2 of Fragment's kRow8
  return {power(first) * 0x10001, power(up - first) | power(up - first - row8) << 16,
          std::ldexp(1.0f, exponent + 8)};
}

Divisor DivisorOf(int64_t by) {
  return {static_cast<uint32_t>(by), static_cast<uint32_t>(((int64_t{1} << 32) + by - 1) / by)};
}

WideGemmParams MakeParams(const WideGemmArgs& a, const WideGemmPlan& plan) {
  const PackedShape& s = a.shape;
  WideGemmParams p{};
  p.weights = static_cast<const uint8_t*>(a.weights), p.y = a.y, p.ends = a.ends;
  p.workspace = static_cast<uint32_t*>(a.workspace);
  p.m = a.m, p.n = s.n, p.rows = plan.rows;
  p.strips = s.strips(), p.k_tiles = s.k_tiles(), p.stages = plan.stages;
  while (1 << p.unit_shift < plan.unit_tiles) ++p.unit_shift;
  const int64_t tiles = Tiles(s, a.m, plan), rounds = Rounds(tiles, plan);
  p.clusters = plan.clusters, p.parts = plan.parts;
  const bool whole = plan.shared || tiles % plan.clusters == 0;
  p.rounds = static_cast<int>(rounds);
  p.short_from = whole ? plan.clusters : static_cast<int>(tiles % plan.clusters);
  if (plan.shared) {
    const int64_t shared = tiles - rounds * plan.clusters, lead = Lead(s, tiles, plan);
    p.share = CeilDiv(shared * (s.k_tiles() - lead) << 32, plan.clusters);
    p.lead = static_cast<int>(lead);
    if (lead > 0) p.by_pieces = DivisorOf(Pieces(tiles, plan));
  }
  p.by_k_tiles = DivisorOf(s.k_tiles()), p.by_token_tiles = DivisorOf(CeilDiv(a.m, plan.tokens));
  p.exponent = a.dtype == Dtype::kFp16 ? GroupScale<4, __half>::kExponent
                                       : GroupScale<4, __nv_bfloat16>::kExponent;
  p.norm = NormOf(s);
  p.reload = s.groups_per_tile(), p.asymmetric = s.asymmetric;
  while (s.group > kStepCols << p.group_shift) ++p.group_shift;
  p.zeros_offset = s.groups_per_tile() * kTileRows * 2;
  p.record_bytes = s.record_bytes(), p.tile_bytes = s.tile_bytes();
  p.strip_bytes = s.strip_bytes();
  p.row_scales = s.row_meta_offset();
  p.row_zeros = p.row_scales + int64_t{s.strips()} * kStripRows * 2;
  p.stage_bytes = static_cast<int>(StageBytes(s, plan));
  p.x_offset = static_cast<int>(WeightsOfStage(s, plan));
  return p;
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
  const auto fitting = [&] { return (shared_bytes - kWideRing) / StageBytes(s, *plan); };
  plan->unit_tiles = plan->tokens <= 64 ? 4 : 1;
  while (plan->unit_tiles > 1 && fitting() < kGoodStages) plan->unit_tiles /= 2;
  plan->stages = static_cast<int>(std::clamp<int64_t>(fitting(), kLeastStages, kMaxStages));
}

}  // namespace

int64_t WideGemmSharedBytes(const PackedShape& shape, const WideGemmPlan& plan) {
  return kWideRing + plan.stages * StageBytes(shape, plan);
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

cudaError_t LaunchWideGemm(const WideGemmArgs& args, const WideGemmPlan& plan, bool early_start,
                           cudaStream_t stream) {
  const int64_t tiles = Tiles(args.shape, args.m, plan);
  const bool divides =
      plan.shared ? plan.clusters <= tiles * args.shape.k_tiles() : plan.clusters <= tiles;
  // The two blocks of a cluster can meet once.
  const bool meets_once = plan.clusters == tiles || Pieces(tiles, plan) > 0;
  if (!divides || (plan.parts > 1 && !meets_once)) return cudaErrorInvalidValue;
  const WideGemmParams p = MakeParams(args, plan);
  CUtensorMap x_map;
  if (const cudaError_t made =
          MakeXMap(args.x, args.m, args.shape.k, args.dtype, plan.tokens, &x_map);
      made != cudaSuccess) {
    return made;
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.clusters * plan.parts);
  config.dynamicSmemBytes = WideGemmSharedBytes(args.shape, plan);
  config.stream = stream, config.attrs = attributes;
  if (early_start) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (plan.parts > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = plan.parts;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  const WideGemmFormat format{plan.tokens, args.dtype};
  switch (args.shape.bits) {
    case 2:
      return LaunchWideGemmBits<2>(p, x_map, format, config);
    case 3:
      return LaunchWideGemmBits<3>(p, x_map, format, config);
    case 4:
      return LaunchWideGemmBits<4>(p, x_map, format, config);
    case 8:
      return LaunchWideGemmBits<8>(p, x_map, format, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
