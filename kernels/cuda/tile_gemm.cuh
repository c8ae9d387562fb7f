// The kernel of tile_gemm.h.
#pragma once

#include "kernels/cuda/launch.cuh"
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
      int count = 0;
      while (!head && p.Begin(blockIdx.x - count) > at.tile * p.units) ++count;
      worker.AddPartials(count);
      worker.Store(at.tile);
    } else {
      worker.StorePartial();
    }
    at.NextTile(p.units);
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kBits, typename T, int kGroup>
__global__ void __launch_bounds__(kTileThreads, 2)
    TileGemmKernel(const __grid_constant__ TileGemmParams p,
                   const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t smem[];
  const int warp = __shfl_sync(~0u, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  const uint32_t full = SharedAddress(smem), empty = full + p.stages * 8;
  if (threadIdx.x < p.stages) {
    BarrierInit(full + threadIdx.x * 8, kTileCopyWarps);
    BarrierInit(empty + threadIdx.x * 8, kTileMultipliers / kLanes);
  }
  BarrierInitFence();
  __syncthreads();
  const int begin = p.Begin(blockIdx.x), behind = p.Begin(blockIdx.x + 1);
  if (begin == behind) return;
  const TileCursor first(p, begin, behind);
  if (warp >= kTileMultipliers / kLanes) {
    GiveRegisters<24>();
    if (lane != 0) return;
    const int copier = warp - kTileMultipliers / kLanes;
    TileCopier{p, &x_map, full, full, empty, copier}.Run(first, behind - begin);
  } else {
    TakeRegisters<kTileRegisters>();
    RecordWorker<kBits, T, kGroup> worker{{p, warp, lane}, smem, full, empty};
    WorkThrough(worker, first);
  }
#else
  asm volatile("trap;");  // built for older machines only
#endif
}

// Instantiated once a width, in tile_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchTileGemmBits(const TileGemmParams& p, const CUtensorMap& x_map, int group,
                               Dtype dtype, const LaunchConfig& config) {
  return ForFormat(dtype, group, [&]<typename T, int kGroup>() {
    return LaunchLarge(TileGemmKernel<kBits, T, kGroup>, config, p, x_map);
  });
}

}  // namespace babai::cuda
