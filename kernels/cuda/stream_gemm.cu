#include <algorithm>

#include "kernels/cuda/stream_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchStreamGemmBits<2>(const StreamGemmParams&, const PackedShape&,
                                                    Dtype, const LaunchConfig&);
extern template cudaError_t LaunchStreamGemmBits<3>(const StreamGemmParams&, const PackedShape&,
                                                    Dtype, const LaunchConfig&);
extern template cudaError_t LaunchStreamGemmBits<4>(const StreamGemmParams&, const PackedShape&,
                                                    Dtype, const LaunchConfig&);
extern template cudaError_t LaunchStreamGemmBits<8>(const StreamGemmParams&, const PackedShape&,
                                                    Dtype, const LaunchConfig&);

namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int AlignUp(int64_t v, int to) { return static_cast<int>((v + to - 1) / to * to); }

// Everything but x, y, the weights and m follows from the shape and the plan.
StreamGemmParams MakeParams(const PackedShape& s, int m, const StreamGemmPlan& plan,
                            int64_t* shared_bytes) {
  StreamGemmParams p{};
  p.m = m, p.n = s.n, p.k = s.k;
  p.k_tiles = s.k_tiles(), p.deep = plan.stages == kDeepStages[s.bits];
  p.strips = Shares{s.strips() / plan.blocks, s.strips() % plan.blocks};
  p.over_k_tiles = static_cast<uint32_t>(CeilDiv(int64_t{1} << 32, p.k_tiles));
  p.exponent = Fragment<4, __nv_bfloat16>::kExponent;
  p.row_meta_offset = s.row_meta_offset();
  p.row_zeros_offset = p.row_meta_offset + int64_t{s.strips()} * kStripRows * 2;
  const int64_t strips = CeilDiv(s.strips(), plan.blocks);  // the most a block may get
  int64_t at = 8;                                           // x's barrier
  const auto take = [&](int64_t bytes) {
    const int64_t offset = AlignUp(at, 128);
    at = offset + bytes;
    return static_cast<int>(offset);
  };
  p.ring = take(int64_t{kStreamWarps} * plan.stages * kUnitRecords[s.bits] * s.record_bytes());
  p.x_rows = take(m * (int64_t{p.k_tiles} * kTileCols * 2 + kXPadBytes));
  p.slots = take((kStreamWarps + strips) * kSlotColumn * m * 4);
  *shared_bytes = at;
  return p;
}

}  // namespace

int64_t StreamGemmSharedBytes(const PackedShape& shape, int m, const StreamGemmPlan& plan) {
  int64_t bytes = 0;
  MakeParams(shape, m, plan, &bytes);
  return bytes;
}

StreamGemmPlan PlanStreamGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes,
                              Turn turn) {
  // Every SM gets a block, even one without strips: it holds its place (see StreamGemmPlan). One
  // token leaves room for two products an SM; with more, for one and what else a model has.
  constexpr int64_t kNoOtherProduct = 2048;
  const int64_t wide = SharedOfTurn(shared_bytes, Turn::kWide);
  const int64_t room = m > 1 ? wide + kNoOtherProduct : SharedOfTurn(shared_bytes, turn);
  for (const int stages : {kDeepStages[shape.bits], kShallowStages}) {
    for (const int64_t bytes : {room, shared_bytes}) {
      const StreamGemmPlan plan{sms, stages, static_cast<int>(bytes)};
      if (StreamGemmSharedBytes(shape, m, plan) <= bytes) return plan;
    }
  }
  return {};
}

cudaError_t LaunchStreamGemm(const StreamGemmArgs& args, const StreamGemmPlan& plan,
                             bool early_start, cudaStream_t stream) {
  if (plan.stages != kDeepStages[args.shape.bits] && plan.stages != kShallowStages) {
    return cudaErrorInvalidValue;
  }
  int64_t shared_bytes = 0;
  StreamGemmParams p = MakeParams(args.shape, args.m, plan, &shared_bytes);
  p.x = args.x, p.y = args.y, p.ends = args.ends;
  p.weights = static_cast<const uint8_t*>(args.weights);

  const LaunchConfig config(dim3(plan.blocks), kStreamThreads,
                            std::max<int64_t>(shared_bytes, plan.shared_bytes), stream,
                            early_start);
  switch (args.shape.bits) {
    case 2:
      return LaunchStreamGemmBits<2>(p, args.shape, args.dtype, config);
    case 3:
      return LaunchStreamGemmBits<3>(p, args.shape, args.dtype, config);
    case 4:
      return LaunchStreamGemmBits<4>(p, args.shape, args.dtype, config);
    case 8:
      return LaunchStreamGemmBits<8>(p, args.shape, args.dtype, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
