#include "kernels/cuda/convert.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 1024;

template <typename From, typename To>
__global__ void ConvertKernel(const From* in, int64_t count, To* out) {
  const int64_t step = int64_t{kBlocks} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    out[i] = FromFloat<To>(ToFloat(in[i]));
  }
}

template <typename To>
cudaError_t LaunchTo(const void* in, StoredFloat type, int64_t count, To* out,
                     cudaStream_t stream) {
  switch (type) {
    case StoredFloat::kFp16:
      ConvertKernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const __half*>(in), count, out);
      break;
    case StoredFloat::kBf16:
      ConvertKernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(in), count,
                                                      out);
      break;
    case StoredFloat::kFp32:
      ConvertKernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const float*>(in), count, out);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t Convert(const void* in, StoredFloat type, int64_t count, void* out, Dtype dtype,
                    const Queue& queue) {
  return dtype == Dtype::kFp16
             ? LaunchTo(in, type, count, static_cast<__half*>(out), queue.stream)
             : LaunchTo(in, type, count, static_cast<__nv_bfloat16*>(out), queue.stream);
}

}  // namespace babai::cuda
