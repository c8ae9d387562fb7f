// Cholesky factors in fp64 by cuSOLVER, opened at run time like cuBLAS. fp64, because on the GPUs
// that this is for it costs what fp32 does (H200: 2.2 against 1.9 ms at 4096), and saves the
// question what to do where fp32 is not enough.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace babai::cuda {

// For one stream.
class Cholesky {
 public:
  // FailedPrecondition: libcusolver.so.12 (of CUDA 13) is not on the library path, or too old.
  static absl::StatusOr<std::unique_ptr<Cholesky>> Make(const Stream& stream);
  virtual ~Cholesky() = default;

  // Doubles of workspace for a [k, k].
  virtual absl::StatusOr<int64_t> WorkspaceValues(int k) = 0;
  // a [k, k], of which positions (r, c) with c >= r are read as row-major, becomes L' with
  // a = L L'; the other positions are left alone. `info` (device) receives 0, or the 1-based index
  // of the first pivot that is not positive. Enqueues and returns without waiting.
  virtual absl::Status Run(double* a, int k, double* workspace, int64_t values, int* info) = 0;
};

}  // namespace babai::cuda
