#include "kernels/cuda/hadamard.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kEach = kHadamardUnit;  // neighbours, of a thread
constexpr int kThreads = 128;

template <typename T>
struct alignas(8) Four {
  T v[kEach];
};

__device__ __forceinline__ void Multiply(float (&v)[kEach], const float* factors) {
  if (factors == nullptr) return;
  const float4 f = *reinterpret_cast<const float4*>(factors);
  v[0] *= f.x, v[1] *= f.y, v[2] *= f.z, v[3] *= f.w;
}

// One level: values whose places differ by `half` become their sum and their difference.
__device__ __forceinline__ float Meet(float mine, float other, bool upper) {
  return upper ? other - mine : mine + other;
}

// A thread block holds whole Hadamard blocks, each thread four neighbours: the levels of 1 and 2
// are its own, those up to 64 its warp's, the others go through shared memory.
template <typename T>
__global__ void HadamardKernel(HadamardArgs a) {
  StartStep();
  SHARED_MEMORY(smem);
  float4* const all = reinterpret_cast<float4*>(smem);
  const int thread = threadIdx.x;
  const int col = (blockIdx.y * blockDim.x + thread) * kEach;
  const bool inside = col < a.width;  // the others only keep the warp whole
  const int64_t at = int64_t{blockIdx.x} * a.width + col;
  float v[kEach] = {};
  if (inside) {
    const Four<T> x = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(a.x) + at);
#pragma unroll
    for (int i = 0; i < kEach; ++i) v[i] = ToFloat(x.v[i]);
    Multiply(v, a.before == nullptr ? nullptr : a.before + col);
  }
#pragma unroll
  for (int half = 1; half < kEach; half *= 2) {
    if (half >= a.block) break;
    const float old[kEach] = {v[0], v[1], v[2], v[3]};
#pragma unroll
    for (int i = 0; i < kEach; ++i) v[i] = Meet(old[i], old[i ^ half], i & half);
  }
#pragma unroll 1
  for (int apart = 1; apart * kEach < a.block; apart *= 2) {  // threads
    const bool upper = thread & apart;
    if (apart < kWarp) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        v[i] = Meet(v[i], __shfl_xor_sync(kAllLanes, v[i], apart), upper);
      }
      continue;
    }
    __syncthreads();  // the level before has been read
    all[thread] = make_float4(v[0], v[1], v[2], v[3]);
    __syncthreads();
    const float4 other = all[thread ^ apart];
    v[0] = Meet(v[0], other.x, upper), v[1] = Meet(v[1], other.y, upper);
    v[2] = Meet(v[2], other.z, upper), v[3] = Meet(v[3], other.w, upper);
  }
  if (!inside) return;
  Multiply(v, a.after == nullptr ? nullptr : a.after + col);
  Four<T> y;
#pragma unroll
  for (int i = 0; i < kEach; ++i) y.v[i] = FromFloat<T>(v[i]);
  *reinterpret_cast<Four<T>*>(static_cast<T*>(a.y) + at) = y;
}

}  // namespace

cudaError_t Hadamard(const HadamardArgs& args, const Queue& queue) {
  const bool power = args.block > 0 && (args.block & (args.block - 1)) == 0;
  if (!power || args.block > kMostHadamardBlock || args.width % args.block != 0 ||
      args.width % kEach != 0) {
    return cudaErrorInvalidValue;
  }
  const int threads = args.block / kEach > kThreads ? args.block / kEach : kThreads;
  const dim3 grid(args.rows, (args.width + threads * kEach - 1) / (threads * kEach));
  const int64_t shared = threads > kWarp ? threads * int64_t{sizeof(float4)} : 0;
  const auto kernel =
      args.dtype == Dtype::kFp16 ? HadamardKernel<__half> : HadamardKernel<__nv_bfloat16>;
  return Launch(kernel, grid, threads, shared, queue, args);
}

}  // namespace babai::cuda
