#include <algorithm>
#include <cmath>

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

WideGemmParams MakeParams(const WideGemmArgs& a, const WideGemmPlan& plan) {
  const PackedShape& s = a.shape;
  WideGemmParams p{DivisionOf(a.shape, a.m, plan)};
  p.weights = static_cast<const uint8_t*>(a.weights), p.y = a.y, p.ends = a.ends;
  p.workspace = static_cast<uint32_t*>(a.workspace);
  p.m = a.m, p.n = s.n, p.rows = plan.rows;
  p.strips = s.strips(), p.stages = plan.stages;
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
  p.stage_bytes = static_cast<int>(BytesOfStage(s, plan));
  p.x_offset = static_cast<int>(WeightBytesOfStage(s, plan));
  return p;
}

}  // namespace

cudaError_t LaunchWideGemm(const WideGemmArgs& args, const WideGemmPlan& plan, bool early_start,
                           cudaStream_t stream) {
  if (!CanDivide(args.shape, args.m, plan)) return cudaErrorInvalidValue;
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
