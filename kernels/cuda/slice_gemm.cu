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

// k tiles of x that a warp has room for. Copied with a k tile's first unit, which is asked for
// kRingUnits - 1 units ahead, it may overwrite only what the warp has in registers.
int XSlots(const PackedShape& s, const SliceGemmPlan& plan) {
  int least = kPassStrips;  // strips of a pass
  for (const int strips : {s.strips() / plan.blocks, CeilDiv(s.strips(), plan.blocks)}) {
    if (strips % kPassStrips != 0) least = std::min(least, strips % kPassStrips);
  }
  return CeilDiv(kRingUnits[s.bits], CeilDiv(least, kUnitRecords[s.bits]));
}

// Everything but x, y, the weights and the ends follows from the shape and the plan.
SliceGemmParams MakeParams(const PackedShape& s, int m, const SliceGemmPlan& plan,
                           int64_t* shared_bytes) {
  SliceGemmParams p{};
  p.m = m, p.n = s.n, p.k = s.k;
  p.warps = plan.warps, p.ahead = plan.ahead;
  p.x_slots = XSlots(s, plan);
  p.strips = ShareOut(s.strips(), plan.blocks), p.k_tiles = ShareOut(s.k_tiles(), plan.warps);
  p.strip_bytes = s.strip_bytes();
  p.exponent = Fragment<4, __nv_bfloat16>::kExponent;
  p.row_scales = s.row_meta_offset();
  p.row_zeros = p.row_scales + int64_t{s.strips()} * kStripRows * 2;
  const int rings = plan.warps * kRingUnits[s.bits] * kUnitRecords[s.bits] * s.record_bytes();
  p.x_tiles = CeilDiv(rings, 128) * 128;
  p.mail = p.x_tiles + plan.warps * p.x_slots * m * kXRowBytes;
  const int strips = std::min(kPassStrips, CeilDiv(s.strips(), plan.blocks));
  *shared_bytes = p.mail + int64_t{strips} * kStripTiles * plan.warps * kLanes * 16;
  return p;
}

}  // namespace

int64_t SliceGemmSharedBytes(const PackedShape& shape, int m, const SliceGemmPlan& plan) {
  int64_t bytes = 0;
  MakeParams(shape, m, plan, &bytes);
  return bytes;
}

SliceGemmPlan PlanSliceGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes) {
  // Where all of it nearly fits the rings, x is what a launch waits for.
  constexpr int kManyUnits = 4;
  SliceGemmPlan plan{sms, 0, 1, static_cast<int>(MoreThanHalf(shared_bytes))};
  for (int warps = kSliceMaxWarps; warps >= 4; warps -= 4) {
    plan.warps = warps;
    const int units = CeilDiv(shape.strips(), sms) * CeilDiv(shape.k_tiles(), warps);
    plan.ahead =
        kUnitRecords[shape.bits] == 1 && units > kManyUnits ? kRingUnits[shape.bits] - 1 : 1;
    if (SliceGemmSharedBytes(shape, m, plan) <= shared_bytes) return plan;
  }
  return {};
}

cudaError_t LaunchSliceGemm(const SliceGemmArgs& args, const SliceGemmPlan& plan, bool early_start,
                            cudaStream_t stream) {
  int64_t shared_bytes = 0;
  SliceGemmParams p = MakeParams(args.shape, args.m, plan, &shared_bytes);
  p.x = args.x, p.y = args.y, p.ends = args.ends;
  p.weights = static_cast<const uint8_t*>(args.weights);

  const LaunchConfig config(dim3(plan.blocks), plan.warps * kLanes,
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
