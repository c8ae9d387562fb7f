#include <algorithm>

#include "kernels/cuda/convert.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 1024;

template <typename From, typename To>
__global__ void ConvertKernel(const From* in, int64_t count, To* out) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    out[i] = FromFloat<To>(ToFloat(in[i]));
  }
}

template <typename From, typename To>
cudaError_t LaunchFromTo(const void* in, int64_t count, To* out, cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(kMostBlocks, (count + kThreads - 1) / kThreads);
  const LaunchConfig config(dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, false);
  return cudaLaunchKernelEx(config.get(), ConvertKernel<From, To>, static_cast<const From*>(in),
                            count, out);
}

template <typename To>
cudaError_t LaunchTo(const void* in, StoredFloat type, int64_t count, To* out,
                     cudaStream_t stream) {
  switch (type) {
    case StoredFloat::kFp16:
      return LaunchFromTo<__half>(in, count, out, stream);
    case StoredFloat::kBf16:
      return LaunchFromTo<__nv_bfloat16>(in, count, out, stream);
    case StoredFloat::kFp32:
      return LaunchFromTo<float>(in, count, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t Convert(const void* in, StoredFloat type, int64_t count, void* out, Dtype dtype,
                    const Queue& queue) {
  return dtype == Dtype::kFp16
             ? LaunchTo(in, type, count, static_cast<__half*>(out), queue.stream)
             : LaunchTo(in, type, count, static_cast<__nv_bfloat16*>(out), queue.stream);
}

}  // namespace babai::cuda
