// Launching a step's kernel, and what most of them share.
//
// A kernel given to Launch() calls WaitForPrecedingKernel() in every thread that touches global
// memory and in at least one thread of every block: only then is "this kernel is done" as much as
// "all kernels before it are done", on which the next one's wait relies.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

// `total` things shared out evenly: the first `extra` shares have one more than the rest.
struct Shares {
  int each, extra;

  __device__ __forceinline__ int Begin(int i) const { return i * each + min(i, extra); }
};

// For cudaLaunchKernelEx(). `early`: may start while the stream's preceding kernel still runs.
class LaunchConfig {
 public:
  LaunchConfig(dim3 grid, int threads, int64_t shared_bytes, cudaStream_t stream, bool early) {
    config_.gridDim = grid, config_.blockDim = dim3(threads);
    config_.dynamicSmemBytes = shared_bytes, config_.stream = stream;
    attribute_.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute_.val.programmaticStreamSerializationAllowed = 1;
    if (early) config_.attrs = &attribute_, config_.numAttrs = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

// A kernel that may need more shared memory than a launch gives without asking.
template <typename... Params, typename... Args>
cudaError_t LaunchLarge(void (*kernel)(Params...), const LaunchConfig& config,
                        const Args&... args) {
  const cudaError_t set = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               static_cast<int>(config.get()->dynamicSmemBytes));
  return set != cudaSuccess ? set : cudaLaunchKernelEx(config.get(), kernel, args...);
}

template <typename T>
struct AsGiven {
  using Type = T;
};

template <typename... Params>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, int threads, int64_t shared_bytes,
                   const Queue& queue, typename AsGiven<Params>::Type... args) {
  // The products before and after take all of an SM's shared memory, and an SM has to run dry
  // before it can be divided otherwise.
  const void* const address = reinterpret_cast<const void*>(kernel);
  cudaError_t set = cudaFuncSetAttribute(address, cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared);
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (set == cudaSuccess && shared_bytes > kWithoutAsking) {
    set = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (set != cudaSuccess) return set;
  const LaunchConfig config(grid, threads, shared_bytes, queue.stream, queue.early_start);
  return cudaLaunchKernelEx(config.get(), kernel, args...);
}

// The start of a step's kernel: the next one may set itself up, we wait for our input.
__device__ __forceinline__ void StartStep() {
  LetNextKernelStart();
  WaitForPrecedingKernel();
}

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(__half v) { return __half2float(v); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ float WarpSum(float v) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAllLanes, v, step);
  return v;
}

// The sum over the block, in a fixed order, for every thread. `scratch`: 33 floats.
__device__ __forceinline__ float BlockSum(float v, float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  v = WarpSum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  if (warp == 0) {
    v = WarpSum(lane < warps ? scratch[lane] : 0.0f);
    if (lane == 0) scratch[kWarp] = v;
  }
  __syncthreads();
  return scratch[kWarp];
}

}  // namespace babai::cuda
