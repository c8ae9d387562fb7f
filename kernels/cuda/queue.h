// Where the kernels of a step are enqueued.
#pragma once

#include <cuda_runtime_api.h>

namespace babai::cuda {

struct Queue {
  cudaStream_t stream = nullptr;
  // A kernel may start while the stream's preceding one still runs; each waits for its input
  // itself. Needs compute capability 9.0.
  bool early_start = false;
};

}  // namespace babai::cuda
