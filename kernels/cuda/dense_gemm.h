// y = x * W^T with dense 16-bit weights, by cuBLAS opened at run time, so that a binary starts on a
// machine without it.
//
//   regime    any m: heads and linears that are not packed
//   numerics  fp32 sums, one rounding of y; deterministic for a shape on one stream
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

struct DenseGemmArgs {  // device pointers, owned by the caller
  const void* x;        // [m, k] of dtype, row-major
  const void* weights;  // [n, k] of dtype, row-major
  void* y;              // [m, n] of dtype, row-major; overwritten
  int m, n, k;
  Dtype dtype;
};

// For one stream.
class DenseGemm {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  // FailedPrecondition: libcublas.so.13 is not on the library path, or too old.
  // ResourceExhausted: no memory for its workspace.
  static absl::StatusOr<std::unique_ptr<DenseGemm>> Make(const Stream& stream);
  virtual ~DenseGemm() = default;

  // Enqueues and returns without waiting. Internal: cuBLAS refused.
  virtual absl::Status Run(const DenseGemmArgs& args) = 0;
};

}  // namespace babai::cuda
