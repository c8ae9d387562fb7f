#include "kernels/cuda/finish_head.cuh"
#include "kernels/cuda/finish_qkv.h"

namespace babai::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostDim = 256;

template <typename T>
__global__ void FinishQkvKernel(FinishQkvArgs a) {
  StartStep();
  const int kv_heads = a.cache.kv_heads, dim = a.cache.head_dim;
  const int item = blockIdx.y * kWarps + threadIdx.x / kWarp;
  if (item >= a.heads + 2 * kv_heads) return;
  const int64_t t = blockIdx.x;
  HeadAngles<kMostDim> angles;
  if (a.angles != nullptr) angles.Load(a.angles + t * a.angle_stride, a.pairs);
  Head<kMostDim> head;
  const auto finish = [&](const float* bias, const float* norm, bool turned) {
    if (bias != nullptr) head.Add(bias, dim);
    if (norm != nullptr) head.Normalize(norm, dim, a.eps);
    if (turned && a.angles != nullptr) head.Turn(angles, a.pairs, dim);
  };
  if (item < a.heads) {
    T* q = static_cast<T*>(a.q) + t * a.q_stride + item * dim;
    head.Load(q, dim);
    finish(a.q_bias == nullptr ? nullptr : a.q_bias + item * dim, a.q_norm, true);
    head.Store(q, dim);
    return;
  }
  const int64_t slot = a.slots[t];
  if (slot < 0) return;
  const bool is_k = item < a.heads + kv_heads;
  const int h = item - a.heads - (is_k ? 0 : kv_heads);
  const RowsOf& from = is_k ? a.k : a.v;
  const float* bias = is_k ? a.k_bias : a.v_bias;
  head.Load(static_cast<const T*>(from.data) + t * from.stride + h * dim, dim);
  finish(bias == nullptr ? nullptr : bias + h * dim, is_k ? a.k_norm : nullptr, is_k);
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
