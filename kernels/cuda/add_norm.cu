#include "kernels/cuda/add_norm.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

// A thread's part of a row: kQuads times four neighbours, blockDim quads apart.
template <int kQuads>
struct RowPart {
  float v[kQuads][4];

  template <typename Fn>
  __device__ __forceinline__ void ForEach(int hidden, const Fn& fn) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int at = (q * blockDim.x + threadIdx.x) * 4;
      if (at >= hidden) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) fn(v[q][j], at + j);
    }
  }
};

struct alignas(8) Quad16 {
  uint16_t v[4];
};

template <typename T>
__device__ __forceinline__ T FromBits(uint16_t bits) {
  if constexpr (__is_same(T, __half)) {
    return __ushort_as_half(bits);
  } else {
    return __ushort_as_bfloat16(bits);
  }
}
__device__ __forceinline__ uint16_t ToBits(__half v) { return __half_as_ushort(v); }
__device__ __forceinline__ uint16_t ToBits(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }

template <int kQuads>
__device__ void Normalize(RowPart<kQuads>& part, const NormWeights& norm, const AddNormArgs& a,
                          float* scratch) {
  const float width = a.hidden;
  float mean = 0;
  if (a.layer_norm) {
    float sum = 0;
    part.ForEach(a.hidden, [&](float& v, int) { sum += v; });
    mean = BlockSum(sum, scratch) / width;
  }
  float squares = 0;
  part.ForEach(a.hidden, [&](float& v, int) { squares += (v - mean) * (v - mean); });
  const float inverse = rsqrtf(BlockSum(squares, scratch) / width + a.eps);
  const bool biased = a.layer_norm && norm.bias != nullptr;
  part.ForEach(a.hidden, [&](float& v, int c) {
    v = (v - mean) * inverse * norm.weight[c];
    if (biased) v += norm.bias[c];
  });
}

template <typename T, int kQuads>
__global__ void __launch_bounds__(1024) AddNormKernel(AddNormArgs a) {
  SHARED_VARIABLE(scratch, float[kWarp + 1]);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {  // parameters come from memory: meanwhile
    const int at = (q * blockDim.x + threadIdx.x) * 4;
    if (at < a.hidden) PrefetchToL2(a.norm.weight + at);
  }
  StartStep();
  const int64_t row = a.row == nullptr ? blockIdx.x : a.row[blockIdx.x];
  float* x = a.x + row * a.hidden;
  RowPart<kQuads> part;
  if (a.y != nullptr) {
    const T* y = static_cast<const T*>(a.y) + row * a.hidden;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int at = (q * blockDim.x + threadIdx.x) * 4;
      if (at >= a.hidden) continue;
      const Quad16 four = *reinterpret_cast<const Quad16*>(y + at);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        part.v[q][j] = ToFloat(FromBits<T>(four.v[j])) + (a.bias == nullptr ? 0 : a.bias[at + j]);
      }
    }
    if (a.post.weight != nullptr) Normalize(part, a.post, a, scratch);
  } else {
    part.ForEach(a.hidden, [](float& v, int) { v = 0; });
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int at = (q * blockDim.x + threadIdx.x) * 4;
    if (at >= a.hidden) continue;
    float4* four = reinterpret_cast<float4*>(x + at);
    float4 old = *four;
    old.x = part.v[q][0] += old.x, old.y = part.v[q][1] += old.y;
    old.z = part.v[q][2] += old.z, old.w = part.v[q][3] += old.w;
    if (a.y != nullptr && a.row == nullptr) *four = old;
  }
  Normalize(part, a.norm, a, scratch);
  T* h = static_cast<T*>(a.h) + int64_t{blockIdx.x} * a.hidden;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int at = (q * blockDim.x + threadIdx.x) * 4;
    if (at >= a.hidden) continue;
    Quad16 four;
#pragma unroll
    for (int j = 0; j < 4; ++j) four.v[j] = ToBits(FromFloat<T>(part.v[q][j]));
    *reinterpret_cast<Quad16*>(h + at) = four;
  }
}

template <typename T, int kQuads>
cudaError_t LaunchFor(const AddNormArgs& args, const Queue& queue) {
  const int quads = (args.hidden + 3) / 4;
  const int threads = (((quads + kQuads - 1) / kQuads) + kWarp - 1) / kWarp * kWarp;
  return Launch(AddNormKernel<T, kQuads>, dim3(args.rows), threads, 0, queue, args);
}

// Up to 512 threads a row of small models, and never more than 1024.
template <typename T>
cudaError_t LaunchTyped(const AddNormArgs& args, const Queue& queue) {
  if (args.hidden <= 2048) return LaunchFor<T, 1>(args, queue);
  if (args.hidden <= 16384) return LaunchFor<T, 4>(args, queue);
  return LaunchFor<T, 8>(args, queue);
}

}  // namespace

cudaError_t AddNorm(const AddNormArgs& args, const Queue& queue) {
  return args.dtype == Dtype::kFp16 ? LaunchTyped<__half>(args, queue)
                                    : LaunchTyped<__nv_bfloat16>(args, queue);
}

}  // namespace babai::cuda
