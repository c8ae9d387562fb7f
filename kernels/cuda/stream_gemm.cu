#include <algorithm>

#include "kernels/cuda/stream_gemm.cuh"

namespace babai::cuda {

extern template cudaError_t LaunchStreamGemmBits<2>(const StreamGemmParams&, int, Dtype, int,
                                                    const cudaLaunchConfig_t&);
extern template cudaError_t LaunchStreamGemmBits<3>(const StreamGemmParams&, int, Dtype, int,
                                                    const cudaLaunchConfig_t&);
extern template cudaError_t LaunchStreamGemmBits<4>(const StreamGemmParams&, int, Dtype, int,
                                                    const cudaLaunchConfig_t&);
extern template cudaError_t LaunchStreamGemmBits<8>(const StreamGemmParams&, int, Dtype, int,
                                                    const cudaLaunchConfig_t&);

namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }
int AlignUp(int64_t v, int to) { return static_cast<int>((v + to - 1) / to * to); }

int StripGroups(const PackedShape& s, const StreamGemmPlan& plan) {
  return CeilDiv(s.strips(), plan.tiles);
}

// Everything but x, y, the pointers and m follows from the shape and the plan.
StreamGemmParams MakeParams(const PackedShape& s, int m, const StreamGemmPlan& plan,
                            int64_t* shared_bytes) {
  StreamGemmParams p{};
  p.m = m, p.n = s.n, p.k = s.k;
  p.strips = s.strips(), p.k_tiles = s.k_tiles(), p.strip_groups = StripGroups(s, plan);
  p.splits = plan.splits, p.clusters = plan.clusters, p.stages = plan.stages;
  p.tile_bytes = s.tile_bytes(), p.asymmetric = s.asymmetric,
  p.row_meta_offset = s.row_meta_offset();
  const int64_t k_tiles = CeilDiv(p.k_tiles, plan.splits);
  const int64_t groups = CeilDiv(p.strip_groups, plan.clusters);
  const int64_t rows = groups * plan.tiles * kTileRows;
  int64_t at = kStreamWarps * plan.stages * 8;
  const auto take = [&](int64_t bytes) {
    const int64_t offset = AlignUp(at, 128);
    at = offset + bytes;
    return static_cast<int>(offset);
  };
  p.ring = take(int64_t{kStreamWarps} * plan.stages * plan.tiles * p.tile_bytes);
  p.x_rows = take(m * (k_tiles * kTileCols * 2 + kXPadBytes));
  p.x_sums = take(k_tiles * std::max(1, s.groups_per_tile()) * kStreamMaxTokens * 4);
  p.slots = take((kStreamWarps + groups) * SlotColumn(plan.tiles) * m * 4);
  p.inbox = take(plan.splits == 1
                     ? 0
                     : int64_t{plan.splits} * CeilDiv(static_cast<int>(rows), plan.splits) * m * 4);
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
                              bool has_clusters) {
  // Half an SM's shared memory, so that the next kernel's rings fill while this one drains.
  const int64_t half = (shared_bytes + 1024) / 2 - 1024;
  StreamGemmPlan best;
  double best_cost = 0;
  for (const int splits : {1, 2, 4, 8}) {
    if (splits > 1 && (!has_clusters || splits > shape.k_tiles())) break;
    for (const int tiles : {4, 3, 2, 1}) {
      StreamGemmPlan plan{tiles, splits, 0, 1};
      const int groups = StripGroups(shape, plan), most = std::max(1, sms / splits);
      const int each = CeilDiv(groups, most);
      plan.clusters = CeilDiv(groups, each);
      const int64_t stage = int64_t{kStreamWarps} * (tiles * shape.tile_bytes() + 8);
      const int64_t fixed = StreamGemmSharedBytes(shape, m, plan) - stage;
      const int units = CeilDiv(each * CeilDiv(shape.k_tiles(), splits), kStreamWarps);
      const int64_t room =
          std::max(half - fixed - 128, std::min(shared_bytes - fixed - 128, 2 * stage));
      plan.stages = static_cast<int>(std::min<int64_t>(room / stage, std::min(units, 16)));
      if (plan.stages < 1) continue;
      // Bytes through the busiest block: its weights, and x, which every block reads again. What
      // the ring cannot hold ahead is not hidden behind the preceding kernel's end. Constants:
      // measured.
      const double weights = 1.0 * each * tiles * shape.strip_bytes() / splits;
      const double x = 2.0 * m * shape.k / splits;
      const double short_of =
          std::max(0.0, std::min(weights, 1.0 * half) - 1.0 * plan.stages * stage);
      const double cost =
          weights + 0.5 * x + 0.3 * short_of + (splits > 1 ? 8000 : 0) + (tiles == 1 ? 4000 : 0);
      if (best.stages == 0 || cost < best_cost) best = plan, best_cost = cost;
    }
  }
  return best;
}

cudaError_t LaunchStreamGemm(const StreamGemmArgs& args, const StreamGemmPlan& plan,
                             bool early_start, cudaStream_t stream) {
  int64_t shared_bytes = 0;
  StreamGemmParams p = MakeParams(args.shape, args.m, plan, &shared_bytes);
  p.x = args.x, p.y = args.y, p.weights = static_cast<const uint8_t*>(args.weights);

  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.clusters * plan.splits);
  config.blockDim = dim3(kStreamThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (early_start) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (plan.splits > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = plan.splits;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  switch (args.shape.bits) {
    case 2:
      return LaunchStreamGemmBits<2>(p, args.shape.group, args.dtype, plan.tiles, config);
    case 3:
      return LaunchStreamGemmBits<3>(p, args.shape.group, args.dtype, plan.tiles, config);
    case 4:
      return LaunchStreamGemmBits<4>(p, args.shape.group, args.dtype, plan.tiles, config);
    case 8:
      return LaunchStreamGemmBits<8>(p, args.shape.group, args.dtype, plan.tiles, config);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace babai::cuda
