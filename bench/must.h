// Results of which a bench makes do with nothing but success.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace babai {

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
  std::exit(1);
}
inline void Must(const absl::Status& status) {
  Must<int>(status.ok() ? absl::StatusOr<int>(0) : status);
}
inline void Must(cudaError_t error) { Must(cuda::FromCuda(error, "cuda")); }

}  // namespace babai
