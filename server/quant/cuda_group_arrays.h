// What the parts of CudaGroupSolver (cuda_group*.cc) share: arrays inside its buffers. Internal.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/device.h"
#include "server/quant/grid_tile.h"

namespace babai {

inline constexpr int kCudaCodes = 256;  // that there may be

// Arrays of k, alike in pinned memory and on the device: what the host sends for a factorization,
// what it gets, what it then sends for the sweep.
struct GroupColumns {
  double* diag;
  int32_t* order;
  uint8_t* dead;
  double* pivots;
  int* info;
  float *raw_diag, *l_diag, *inverse, *importance;
  int64_t bytes;

  GroupColumns(uint8_t* memory, int64_t k) {
    Carver carver(memory);
    diag = carver.Take<double>(k), order = carver.Take<int32_t>(k), dead = carver.Take<uint8_t>(k);
    pivots = carver.Take<double>(k), info = carver.Take<int>(1);
    raw_diag = carver.Take<float>(k), l_diag = carver.Take<float>(k);
    inverse = carver.Take<float>(k), importance = carver.Take<float>(k);
    bytes = carver.used();
  }
  GroupColumns(const cuda::Buffer& buffer, int64_t k) : GroupColumns(buffer.data<uint8_t>(), k) {}
};

// Arrays of n on the device.
struct GroupRowSums {
  double *losses, *references;
  int *clipped, *refused;
  int64_t bytes;

  GroupRowSums(uint8_t* memory, int64_t n) {
    Carver carver(memory);
    losses = carver.Take<double>(n), references = carver.Take<double>(n);
    clipped = carver.Take<int>(n), refused = carver.Take<int>(1);
    bytes = carver.used();
  }
};

inline absl::Status Launched(cudaError_t error, absl::string_view what) {
  return cuda::FromCuda(error, what);
}

template <typename T>
absl::Status CopyTo(const T* from, int64_t count, T* to, cudaMemcpyKind kind,
                    const cuda::Stream& stream) {
  return Launched(cudaMemcpyAsync(to, from, count * sizeof(T), kind, stream.get()), "copying");
}

inline int Int(int64_t value) { return static_cast<int>(value); }

}  // namespace babai
