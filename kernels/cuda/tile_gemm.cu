#include <algorithm>

#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchTileGemmBits<2>(const TileGemmParams&, const CUtensorMap&, int,
                                                  Dtype, const LaunchConfig&);
extern template cudaError_t LaunchTileGemmBits<3>(const TileGemmParams&, const CUtensorMap&, int,
                                                  Dtype, const LaunchConfig&);
extern template cudaError_t LaunchTileGemmBits<4>(const TileGemmParams&, const CUtensorMap&, int,
                                                  Dtype, const LaunchConfig&);
extern template cudaError_t LaunchTileGemmBits<8>(const TileGemmParams&, const CUtensorMap&, int,
                                                  Dtype, const LaunchConfig&);

namespace {

constexpr int kMailOffset = 1024;  // barriers before it
// Behind the mail of RecordWorker::Meet(); swizzled x wants multiples of 1024.
constexpr int kRingOffset = kMailOffset + kTileGemmRows * kTileGemmTokens * 4;
constexpr int kLeastTileStages = 2, kMaxTileStages = 48;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t AlignUp(int64_t v, int64_t to) { return CeilDiv(v, to) * to; }

int64_t WeightsOfStage(const PackedShape& s, const TileGemmPlan& plan) {
  return AlignUp(int64_t{kTileGemmRows} / kStripRows * plan.unit_tiles * s.record_bytes(), 1024);
}
int64_t StageBytes(const PackedShape& s, const TileGemmPlan& plan) {
  return WeightsOfStage(s, plan) + int64_t{plan.unit_tiles} * kTileGemmTokens * kTileCols * 2;
}

TileGemmParams MakeParams(const TileGemmArgs& a, const TileGemmPlan& plan) {
  const PackedShape& s = a.shape;
  TileGemmParams p{};
  p.weights = static_cast<const uint8_t*>(a.weights), p.y = a.y, p.ends = a.ends;
  p.workspace = static_cast<uint32_t*>(a.workspace);
  p.m = a.m, p.n = s.n;
  p.strips = s.strips(), p.k_tiles = s.k_tiles();
  p.unit_tiles = plan.unit_tiles, p.stages = plan.stages;
  p.units = static_cast<int>(CeilDiv(p.k_tiles, plan.unit_tiles));
  const int64_t work = CeilDiv(s.n, kTileGemmRows) * p.units;
  p.share = static_cast<int>(work / plan.blocks), p.extra = static_cast<int>(work % plan.blocks);
  p.exponent = Fragment<4, __nv_bfloat16>::kExponent;
  p.asymmetric = s.asymmetric;
  p.record_bytes = s.record_bytes(), p.tile_bytes = s.tile_bytes();
  p.strip_bytes = s.strip_bytes();
  p.row_scales = s.row_meta_offset();
  p.row_zeros = p.row_scales + int64_t{s.strips()} * kStripRows * 2;
  p.stage_bytes = static_cast<int>(StageBytes(s, plan));
  p.x_offset = static_cast<int>(WeightsOfStage(s, plan)), p.ring = kRingOffset;
  p.mail = kMailOffset;
  return p;
}

}  // namespace

int64_t TileGemmSharedBytes(const PackedShape& shape, const TileGemmPlan& plan) {
  return kRingOffset + plan.stages * StageBytes(shape, plan);
}

TileGemmPlan PlanTileGemm(const PackedShape& shape, int sms, int64_t shared_bytes) {
  TileGemmPlan plan;
  plan.blocks = sms;
  // Half an SM's and a little: two of these beside one another are slower, whatever stands between
  // them (measured), but other kernels' blocks find room. All of it where two stages of a k tile
  // for each part of the warps do not fit there.
  const auto fits = [&](int stages) {
    plan.stages = stages;
    return TileGemmSharedBytes(shape, plan) <= plan.shared_bytes;
  };
  for (const int64_t allowed : {MoreThanHalf(shared_bytes), shared_bytes}) {
    plan.shared_bytes = static_cast<int>(allowed);
    plan.unit_tiles = 4;
    while (plan.unit_tiles > kTileParts && !fits(kLeastTileStages)) plan.unit_tiles /= 2;
    if (fits(kLeastTileStages)) break;
  }
  int stages = kLeastTileStages;
  while (stages < kMaxTileStages && fits(stages + 1)) ++stages;
  plan.stages = stages;
  return plan;
}

cudaError_t LaunchTileGemm(const TileGemmArgs& args, const TileGemmPlan& plan, bool early_start,
                           cudaStream_t stream) {
  if (args.m > kTileGemmTokens) return cudaErrorInvalidValue;
  const TileGemmParams p = MakeParams(args, plan);
  CUtensorMap x_map;
  if (const cudaError_t made =
          MakeXMap(args.x, args.m, args.shape.k, args.dtype, kTileGemmTokens, &x_map);
      made != cudaSuccess) {
    return made;
  }
  const LaunchConfig config(
      dim3(plan.blocks), kTileThreads,
      std::max<int64_t>(TileGemmSharedBytes(args.shape, plan), plan.shared_bytes), stream,
      early_start);
  switch (args.shape.bits) {
    case 2:
      return LaunchTileGemmBits<2>(p, x_map, args.shape.group, args.dtype, config);
    case 3:
      return LaunchTileGemmBits<3>(p, x_map, args.shape.group, args.dtype, config);
    case 4:
      return LaunchTileGemmBits<4>(p, x_map, args.shape.group, args.dtype, config);
    case 8:
      return LaunchTileGemmBits<8>(p, x_map, args.shape.group, args.dtype, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
