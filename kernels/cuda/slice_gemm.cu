#include <algorithm>

#include "kernels/cuda/slice_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchSliceGemmBits<2>(const SliceGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchSliceGemmBits<3>(const SliceGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchSliceGemmBits<4>(const SliceGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);
extern template cudaError_t LaunchSliceGemmBits<8>(const SliceGemmParams&, const PackedShape&,
                                                   Dtype, const LaunchConfig&);

namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

Shares ShareOut(int total, int shares) { return {total / shares, total % shares}; }

// So many k tiles of x that there is x for each unit of a ring, in the shortest pass.
int WantedXTiles(const PackedShape& s, int m, const SliceGemmPlan& plan) {
  int least = kPassStrips;  // strips of a pass
  const int teams = plan.blocks / plan.team;
  for (const int strips : {s.strips() / teams, CeilDiv(s.strips(), teams)}) {
    if (strips % kPassStrips != 0) least = std::min(least, strips % kPassStrips);
  }
  const int eights = SliceEights(m);
  return CeilDiv(SliceRing(s.bits, eights), CeilDiv(least, SliceUnit(s.bits, eights)));
}

// Everything but x, y, the weights, the workspace and the ends follows from the shape and the plan.
SliceGemmParams MakeParams(const PackedShape& s, int m, const SliceGemmPlan& plan,
                           int64_t* shared_bytes) {
  const int eights = SliceEights(m), teams = plan.blocks / plan.team;
  SliceGemmParams p{};
  p.m = m, p.n = s.n, p.k = s.k, p.x_row_bytes = s.k * 2;
  p.warps = plan.warps, p.ahead = plan.ahead;
  p.x_tiles = plan.x_tiles;
  p.strips = ShareOut(s.strips(), teams);
  p.k_tiles = ShareOut(s.k_tiles(), plan.team * plan.warps);
  p.strip_bytes = s.strip_bytes();
  p.exponent = Fragment<4, __nv_bfloat16>::kExponent;
  p.row_scales = s.row_meta_offset();
  p.row_zeros = p.row_scales + int64_t{s.strips()} * kStripRows * 2;
  const int ring = SliceRing(s.bits, eights) * SliceUnit(s.bits, eights) * s.record_bytes();
  p.x_offset = CeilDiv(plan.warps * ring, 128) * 128;
  const int x_end = p.x_offset + plan.warps * plan.x_tiles * eights * 8 * kXRowBytes;
  const int strips = CeilDiv(s.strips(), teams);
  const int mail = std::min(kPassStrips, strips) * kStripTiles * eights * plan.warps * kLanes * 16;
  p.mail = strips > kPassStrips ? x_end : 0;
  *shared_bytes = std::max(x_end, p.mail + mail);
  return p;
}

}  // namespace

int64_t SliceGemmSharedBytes(const PackedShape& shape, int m, const SliceGemmPlan& plan) {
  int64_t bytes = 0;
  MakeParams(shape, m, plan, &bytes);
  return bytes;
}

SliceGemmPlan PlanSliceGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes) {
  constexpr int kManyUnits = 4;
  const int eights = SliceEights(m), unit = SliceUnit(shape.bits, eights);
  const auto units = [&](int warps) {
    return CeilDiv(shape.strips(), sms) * CeilDiv(shape.k_tiles(), warps);
  };
  SliceGemmPlan plan;
  plan.blocks = sms, plan.shared_bytes = static_cast<int>(MoreThanHalf(shared_bytes));
  int most_warps = MaxSliceWarps(m);
  // Where there is little to do, room for blocks of the kernels around this one gains more than
  // warps do.
  if (eights == 1 && units(most_warps) <= kManyUnits) most_warps = 12;
  for (int warps = most_warps; warps >= 4; warps -= 4) {
    plan.warps = warps;
    const bool team =
        eights == 2 && sms % 2 == 0 && shape.strips() <= sms && shape.k_tiles() >= 2 * warps;
    plan.team = team ? 2 : 1;
    // Where all of it nearly fits the rings, x is what a launch waits for.
    plan.ahead = unit == 1 && units(warps) > kManyUnits ? SliceRing(shape.bits, eights) - 1 : 1;
    for (plan.x_tiles = WantedXTiles(shape, m, plan); plan.x_tiles > 0; --plan.x_tiles) {
      if (SliceGemmSharedBytes(shape, m, plan) <= shared_bytes) return plan;
    }
  }
  return {};
}

cudaError_t LaunchSliceGemm(const SliceGemmArgs& args, const SliceGemmPlan& plan, bool early_start,
                            cudaStream_t stream) {
  const int teams = plan.blocks / plan.team;
  const bool team = plan.team == 2 && args.m > 8 && teams > 0 &&
                    CeilDiv(args.shape.strips(), teams) <= kPassStrips;
  if (args.m > kSliceMaxTokens || plan.warps > MaxSliceWarps(args.m) || (plan.team != 1 && !team)) {
    return cudaErrorInvalidValue;
  }
  int64_t shared_bytes = 0;
  SliceGemmParams p = MakeParams(args.shape, args.m, plan, &shared_bytes);
  p.x = args.x, p.y = args.y, p.ends = args.ends;
  p.weights = static_cast<const uint8_t*>(args.weights);
  p.workspace = static_cast<uint32_t*>(args.workspace);

  const LaunchConfig config(dim3(plan.team, teams), plan.warps * kLanes,
                            std::max<int64_t>(shared_bytes, plan.shared_bytes), stream,
                            early_start);
  switch (args.shape.bits) {
    case 2:
      return LaunchSliceGemmBits<2>(p, args.shape, args.dtype, config);
    case 3:
      return LaunchSliceGemmBits<3>(p, args.shape, args.dtype, config);
    case 4:
      return LaunchSliceGemmBits<4>(p, args.shape, args.dtype, config);
    case 8:
      return LaunchSliceGemmBits<8>(p, args.shape, args.dtype, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
