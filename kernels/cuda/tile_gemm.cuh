// The kernel of tile_gemm.h.
#pragma once

#include "kernels/cuda/record_worker.cuh"
#include "kernels/cuda/tile_copier.cuh"

namespace babai::cuda {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The block's units, a tile at a time; `worker` adds up what of a tile is the block's. Of the
// blocks that share a tile the one with its end adds up what the others, all before it, have left:
// a block never waits for a later one, which might not run yet.
template <typename Worker>
__device__ __forceinline__ void WorkThrough(Worker& worker, TileCursor at) {
  const TileGemmParams& p = worker.p;
#pragma unroll 1
  while (at.tile >= at.first_tile) {
    const bool head = at.unit == 0, tail = at.end == p.units;
    worker.Accumulate(at);
    if (tail) {
      int block = blockIdx.x;
#pragma unroll 1
      while (!head && p.Begin(block) > at.tile * p.units) worker.AddPartial(--block);
      worker.Store(at.tile);
    } else {
      worker.StorePartial();
    }
    at.NextTile(p.units);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kBits, typename T, typename Shape, int kGroup>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    TileGemmKernel(const __grid_constant__ TileGemmParams p,
                   const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t smem[];
  const int warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  const uint32_t full = SharedAddress(smem), empty = full + p.stages * 8;
  if (threadIdx.x < p.stages) {
    BarrierInit(full + threadIdx.x * 8, kTileCopyWarps);
    BarrierInit(empty + threadIdx.x * 8, Shape::kMultipliers / kLanes);
  }
  BarrierInitFence();
  __syncthreads();
  const int begin = p.Begin(blockIdx.x), behind = p.Begin(blockIdx.x + 1);
  if (begin == behind) return;
  const TileCursor first(p, begin, behind);
  if (warp >= Shape::kMultipliers / kLanes) {
    GiveRegisters<24>();
    if (lane != 0) return;
    const int copier = warp - Shape::kMultipliers / kLanes;
    TileCopier<Shape>{p, &x_map, full, full, empty, copier}.Run(first, behind - begin);
  } else {
    TakeRegisters<Shape::kRegisters>();
    RecordWorker<kBits, T, Shape, kGroup> worker{{p, warp, lane}, smem, full, empty};
    WorkThrough(worker, first);
  }
#else
  asm volatile("trap;");  // built for older machines only
#endif
}

// Instantiated once a width, in tile_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchTileGemmBits(const TileGemmParams& p, const CUtensorMap& x_map,
                               const TileGemmFormat& format, const cudaLaunchConfig_t& config);

template <int kBits, typename T, typename Shape, int kGroup>
cudaError_t LaunchTileGemmKernel(const TileGemmParams& p, const CUtensorMap& x_map,
                                 cudaLaunchConfig_t config) {
  const auto kernel = TileGemmKernel<kBits, T, Shape, kGroup>;
  const int bytes = static_cast<int>(config.dynamicSmemBytes);
  const cudaError_t set =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  config.blockDim = dim3(Shape::kThreads);
  return set != cudaSuccess ? set : cudaLaunchKernelEx(&config, kernel, p, x_map);
}

template <int kBits, typename T, typename Shape>
cudaError_t LaunchTileGemmGroup(const TileGemmParams& p, const CUtensorMap& x_map, int group,
                                const cudaLaunchConfig_t& config) {
  switch (group) {
    case 0:
      return LaunchTileGemmKernel<kBits, T, Shape, 0>(p, x_map, config);
    case 32:
      return LaunchTileGemmKernel<kBits, T, Shape, 32>(p, x_map, config);
    case 64:
      return LaunchTileGemmKernel<kBits, T, Shape, 64>(p, x_map, config);
    case 128:
      return LaunchTileGemmKernel<kBits, T, Shape, 128>(p, x_map, config);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits, typename T>
cudaError_t LaunchTileGemmShape(const TileGemmParams& p, const CUtensorMap& x_map,
                                const TileGemmFormat& format, const cudaLaunchConfig_t& config) {
  switch (format.tokens) {
    case 8:
      return LaunchTileGemmGroup<kBits, T, TileShape<8>>(p, x_map, format.group, config);
    case 16:
      return LaunchTileGemmGroup<kBits, T, TileShape<16>>(p, x_map, format.group, config);
    default:
      return cudaErrorInvalidValue;
  }
}

template <int kBits>
cudaError_t LaunchTileGemmBits(const TileGemmParams& p, const CUtensorMap& x_map,
                               const TileGemmFormat& format, const cudaLaunchConfig_t& config) {
  return format.dtype == Dtype::kFp16
             ? LaunchTileGemmShape<kBits, __half>(p, x_map, format, config)
             : LaunchTileGemmShape<kBits, __nv_bfloat16>(p, x_map, format, config);
}

}  // namespace babai::cuda
