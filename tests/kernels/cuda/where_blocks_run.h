// Which multiprocessors a stream's kernels get.
#pragma once

#include <cuda_runtime_api.h>

namespace babai::cuda {

// seen[i] = 1 (int) for each multiprocessor i that a block runs on; each block stays for `cycles`.
cudaError_t WhereBlocksRun(int blocks, int threads, int cycles, int* seen, cudaStream_t stream);

}  // namespace babai::cuda
