#include "kernels/cuda/activate.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAtOnce = 8;  // values of a 16-byte load

// Constants of gelu's tanh form: Hendrycks and Gimpel 2016, arXiv:1606.08415.
__device__ __forceinline__ float Apply(ActivationKind kind, float v) {
  switch (kind) {
    case ActivationKind::kSilu:
      return v / (1.0f + __expf(-v));
    case ActivationKind::kGeluTanh:
      return 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    case ActivationKind::kGeluErf:
      return 0.5f * v * (1.0f + erff(v * 0.7071067812f));
    default:
      return fmaxf(v, 0.0f);
  }
}

template <typename T>
struct alignas(16) Eight {
  T v[kAtOnce];
};

template <typename T>
__device__ __forceinline__ Eight<T> LoadEight(const RowsOf& rows, int64_t row, int col) {
  return *reinterpret_cast<const Eight<T>*>(static_cast<const T*>(rows.data) + row * rows.stride +
                                            col);
}

template <typename T>
__global__ void ActivateKernel(ActivateArgs a) {
  StartStep();
  const int64_t row = blockIdx.x;
  const int col = (blockIdx.y * kThreads + threadIdx.x) * kAtOnce;
  if (col >= a.width) return;
  const bool gated = a.gate.data != nullptr;
  const Eight<T> up = LoadEight<T>(a.up, row, col);
  Eight<T> gate{}, out;
  if (gated) gate = LoadEight<T>(a.gate, row, col);
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const float u = ToFloat(up.v[i]) + (a.up_bias == nullptr ? 0.0f : a.up_bias[col + i]);
    const float g = ToFloat(gate.v[i]) + (a.gate_bias == nullptr ? 0.0f : a.gate_bias[col + i]);
    out.v[i] = FromFloat<T>(gated ? Apply(a.kind, g) * u : Apply(a.kind, u));
  }
  *reinterpret_cast<Eight<T>*>(static_cast<T*>(a.out) + row * a.width + col) = out;
}

}  // namespace

cudaError_t Activate(const ActivateArgs& args, const Queue& queue) {
  constexpr int kBlockCols = kThreads * kAtOnce;
  const dim3 grid(args.rows, (args.width + kBlockCols - 1) / kBlockCols);
  const auto kernel =
      args.dtype == Dtype::kFp16 ? ActivateKernel<__half> : ActivateKernel<__nv_bfloat16>;
  return Launch(kernel, grid, kThreads, 0, queue, args);
}

}  // namespace babai::cuda
