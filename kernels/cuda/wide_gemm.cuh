// The kernel of wide_gemm.h.
#pragma once

#include "kernels/cuda/wide_copier.cuh"
#include "kernels/cuda/wide_worker.cuh"

namespace babai::cuda {

template <int kBits, typename T, typename Shape, bool kPlain>
__global__ void __launch_bounds__(Shape::kMostThreads, 1)
    WideGemmKernel(const __grid_constant__ WideGemmParams p,
                   const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t smem[];
  const int workers = Shape::Multipliers(p) / kLanes;
  const int warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  // Barriers: two of each stage and MeetPart()'s.
  const uint32_t full = SharedAddress(smem), empty = full + p.stages * 8;
  if (threadIdx.x < p.stages) {
    BarrierInit(full + threadIdx.x * 8, 2);  // who copies W and who copies x
    BarrierInit(empty + threadIdx.x * 8, workers);
  }
  if (threadIdx.x == p.stages) BarrierInit(empty + p.stages * 8, 1);
  BarrierInitFence();
  __syncthreads();
  if (warp >= workers) {
    GiveRegisters<24>();
    if (lane != 0) return;
    const WideCopier<Shape> copier{p, full + kWideRing, full, empty};
    if (warp == workers) copier.CopyWeights();
    if (warp == workers + 1) copier.CopyX(&x_map);
  } else {
    TakeRegisters<Shape::kRegisters>();
    WideWorker<kBits, T, Shape, kPlain> worker{{p, warp, lane}, smem, full, empty};
    worker.Run();
  }
#else
  asm volatile("trap;");  // built for older machines only
#endif
}

// Instantiated once a width, in wide_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchWideGemmBits(const WideGemmParams& p, const CUtensorMap& x_map,
                               const WideGemmFormat& format, const cudaLaunchConfig_t& config);

template <int kBits, typename T, typename Shape, bool kPlain>
cudaError_t LaunchWideGemmKernel(const WideGemmParams& p, const CUtensorMap& x_map,
                                 cudaLaunchConfig_t config) {
  const auto kernel = WideGemmKernel<kBits, T, Shape, kPlain>;
  const int bytes = static_cast<int>(config.dynamicSmemBytes);
  const cudaError_t set =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  config.blockDim = dim3(p.rows * 2 + kWideCopyWarps * kLanes);
  return set != cudaSuccess ? set : cudaLaunchKernelEx(&config, kernel, p, x_map);
}

template <int kBits, typename T, bool kPlain>
cudaError_t LaunchWideGemmShape(const WideGemmParams& p, const CUtensorMap& x_map,
                                const WideGemmFormat& format, const cudaLaunchConfig_t& config) {
  switch (format.tokens) {
    case 32:
      return LaunchWideGemmKernel<kBits, T, WideShape<32, 256>, kPlain>(p, x_map, config);
    case 64:
      return LaunchWideGemmKernel<kBits, T, WideShape<64, 256>, kPlain>(p, x_map, config);
    case 128:
      return p.rows > 128
                 ? LaunchWideGemmKernel<kBits, T, WideShape<128, 256>, kPlain>(p, x_map, config)
                 : LaunchWideGemmKernel<kBits, T, WideShape<128, 128>, kPlain>(p, x_map, config);
    case 192:
      return LaunchWideGemmKernel<kBits, T, WideShape<192, 128>, kPlain>(p, x_map, config);
    case 256:
      return LaunchWideGemmKernel<kBits, T, WideShape<256, 128>, kPlain>(p, x_map, config);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits, typename T>
cudaError_t LaunchWideGemmType(const WideGemmParams& p, const CUtensorMap& x_map,
                               const WideGemmFormat& format, const cudaLaunchConfig_t& config) {
  const bool bounded = !__is_same(T, __half) || p.norm.factor > 0;
  return p.reload <= 1 && !p.asymmetric && bounded
             ? LaunchWideGemmShape<kBits, T, true>(p, x_map, format, config)
             : LaunchWideGemmShape<kBits, T, false>(p, x_map, format, config);
}

template <int kBits>
cudaError_t LaunchWideGemmBits(const WideGemmParams& p, const CUtensorMap& x_map,
                               const WideGemmFormat& format, const cudaLaunchConfig_t& config) {
  return format.dtype == Dtype::kFp16
             ? LaunchWideGemmType<kBits, __half>(p, x_map, format, config)
             : LaunchWideGemmType<kBits, __nv_bfloat16>(p, x_map, format, config);
}

}  // namespace babai::cuda
