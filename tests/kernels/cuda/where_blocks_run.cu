#include "tests/kernels/cuda/where_blocks_run.h"

namespace babai::cuda {
namespace {

__global__ void WhereKernel(int cycles, int* seen) {
  unsigned sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
  seen[sm] = 1;
}

}  // namespace

cudaError_t WhereBlocksRun(int blocks, int threads, int cycles, int* seen, cudaStream_t stream) {
  WhereKernel<<<blocks, threads, 0, stream>>>(cycles, seen);
  return cudaGetLastError();
}

}  // namespace babai::cuda
