// y = x * W^T with dense 16-bit weights, by cuBLAS.
//
//   regime    any m: heads and linears that are not packed
//   numerics  fp32 sums, one rounding of y; deterministic for a shape on one stream
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

struct DenseGemmArgs {  // device pointers, owned by the caller
  const void* x;        // [m, k] of dtype, row-major
  const void* weights;  // [n, k] of dtype, row-major
  void* y;              // [m, n] of dtype, row-major (or strided); overwritten
  int m, n, k;
  Dtype dtype;
  int y_stride = 0;  // from a row of y to the next, in elements; 0: n
};

// For one stream.
class DenseGemm {
 public:
  static constexpr int64_t kWorkspaceBytes = Cublas::kWorkspaceBytes;

  // Errors of Cublas::Make.
  static absl::StatusOr<std::unique_ptr<DenseGemm>> Make(const Stream& stream);
  explicit DenseGemm(std::unique_ptr<Cublas> cublas) : cublas_(std::move(cublas)) {}

  // Enqueues and returns without waiting. Internal: cuBLAS refused.
  absl::Status Run(const DenseGemmArgs& args);
  Cublas& cublas() { return *cublas_; }

 private:
  const std::unique_ptr<Cublas> cublas_;
};

}  // namespace babai::cuda
