// The calls of the CUDA runtime that a step makes, on simt.h's device; and the
// kernels that it has none of.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/wide_attention.h"
#include "kernels/cuda/wide_gemm.h"
#include "simt.h"

namespace {

cudaError_t Allocate(void** p, size_t bytes) {
  constexpr size_t kAlignment = 256;
  *p = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (*p == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*p, 0xab, bytes);
  return cudaSuccess;
}

using Work = std::vector<std::function<void()>>;
std::unique_ptr<Work> captured;  // not null: a stream is being captured

}  // namespace

cudaError_t babai::emulated::Enqueue(std::function<void()> work, int64_t shared_bytes) {
  if (shared_bytes > kSharedBytes) return cudaErrorInvalidValue;
  if (captured) {
    captured->push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

extern "C" {

using babai::emulated::Enqueue;

cudaError_t cudaMalloc(void** p, size_t bytes) { return Allocate(p, bytes); }
cudaError_t cudaMallocHost(void** p, size_t bytes) { return Allocate(p, bytes); }
cudaError_t cudaFree(void* p) { return std::free(p), cudaSuccess; }
cudaError_t cudaFreeHost(void* p) { return std::free(p), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  return Enqueue([=] { std::memcpy(to, from, bytes); }, 0);
}
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  return Enqueue([=] { std::memset(to, byte, bytes); }, 0);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  captured = std::make_unique<Work>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(captured.release());
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : *reinterpret_cast<Work*>(exec)) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Work*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Work*>(exec);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = size_t{1} << 30, cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using namespace babai::emulated;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? kSms
           : attribute == cudaDevAttrComputeCapabilityMajor ? kMajor
                                                            : static_cast<int>(kSharedBytes);
  return cudaSuccess;
}
// Launches have ended when they return: there is nothing to order.
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = *greatest = 0, cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return *stream = nullptr, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = nullptr, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

}  // extern "C"

namespace babai::cuda {

bool WideAttentionTakes(const AttentionArgs&) { return false; }
cudaError_t WideAttention(const AttentionArgs&, const PrefillTile*, int, const Queue&) {
  return cudaErrorNotSupported;
}
cudaError_t LaunchWideGemm(const WideGemmArgs&, const WideGemmPlan&, bool, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace babai::cuda
