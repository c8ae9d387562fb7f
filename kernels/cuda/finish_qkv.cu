#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostDim = 256;
constexpr int kPerLane = kMostDim / kWarp;

// A head of one token, features lane, lane + 32, ... of it in this lane.
struct Head {
  float v[kPerLane];

  template <typename Fn>
  __device__ __forceinline__ void ForEach(int dim, const Fn& fn) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int d = i * kWarp + lane;
      if (d < dim) fn(v[i], d);
    }
  }

  template <typename T>
  __device__ __forceinline__ void Load(const T* from, const float* bias, int dim) {
    ForEach(dim, [&](float& value, int d) {
      value = ToFloat(from[d]) + (bias == nullptr ? 0.0f : bias[d]);
    });
  }
  __device__ __forceinline__ void Normalize(const float* weight, int dim, float eps) {
    float squares = 0;
    ForEach(dim, [&](float& value, int) { squares += value * value; });
    const float inverse = rsqrtf(WarpSum(squares) / static_cast<float>(dim) + eps);
    ForEach(dim, [&](float& value, int d) { value *= inverse * weight[d]; });
  }
  // Partners lie in other lanes, wherever `pairs` puts them: through `row`, the warp's own.
  __device__ __forceinline__ void Turn(const float2* angles, int pairs, int dim, float* row) {
    ForEach(dim, [&](float& value, int d) { row[d] = value; });
    __syncwarp();
    ForEach(dim, [&](float& value, int d) {
      if (d >= 2 * pairs) return;
      const float2 angle = angles[d < pairs ? d : d - pairs];
      value = d < pairs ? value * angle.x - row[d + pairs] * angle.y
                        : value * angle.x + row[d - pairs] * angle.y;
    });
    __syncwarp();
  }
  template <typename T>
  __device__ __forceinline__ void Store(T* to, int dim) {
    ForEach(dim, [&](float& value, int d) { to[d] = FromFloat<T>(value); });
  }
};

template <typename T>
__global__ void FinishQkvKernel(FinishQkvArgs a) {
  __shared__ float rows[kWarps][kMostDim];
  StartStep();
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim;
  const int item = blockIdx.y * kWarps + threadIdx.x / kWarp;
  if (item >= a.heads + 2 * kv_heads) return;
  const int64_t t = blockIdx.x;
  float* row = rows[threadIdx.x / kWarp];
  const float2* angles = a.angles == nullptr ? nullptr : a.angles + t * a.angle_stride;
  Head head;
  if (item < a.heads) {
    T* q = static_cast<T*>(a.q) + t * a.q_stride + item * dim;
    head.Load(q, a.q_bias == nullptr ? nullptr : a.q_bias + item * dim, dim);
    if (a.q_norm != nullptr) head.Normalize(a.q_norm, dim, a.eps);
    if (angles != nullptr) head.Turn(angles, a.pairs, dim, row);
    head.Store(q, dim);
    return;
  }
  const int64_t slot = a.slots[t];
  if (slot < 0) return;
  const bool is_k = item < a.heads + kv_heads;
  const int h = item - a.heads - (is_k ? 0 : kv_heads);
  const RowsOf& from = is_k ? a.k : a.v;
  const float* bias = is_k ? a.k_bias : a.v_bias;
  head.Load(static_cast<const T*>(from.data) + t * from.stride + h * dim,
            bias == nullptr ? nullptr : bias + h * dim, dim);
  if (is_k && a.k_norm != nullptr) head.Normalize(a.k_norm, dim, a.eps);
  if (is_k && angles != nullptr) head.Turn(angles, a.pairs, dim, row);
  head.Store((is_k ? a.cache.k : a.cache.v) + a.cache.RowAt(slot, h), dim);
}

}  // namespace

cudaError_t FinishQkv(const FinishQkvArgs& args, const Queue& queue) {
  const int items = args.heads + 2 * args.cache.kv_heads;
  const dim3 grid(args.count, (items + kWarps - 1) / kWarps);
  const auto kernel =
      args.dtype == Dtype::kFp16 ? FinishQkvKernel<__half> : FinishQkvKernel<__nv_bfloat16>;
  return Launch(kernel, grid, kWarps * kWarp, 0, queue, args);
}

}  // namespace babai::cuda
