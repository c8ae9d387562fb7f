// Dense products by cuBLAS, opened at run time so that a binary starts on a machine without it.
// Column-major, as cuBLAS has it: what stands on it says what that means for its own matrices.
//
//   numerics  fp32 sums; deterministic for a shape on one stream
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

enum class Element { kFp16, kBf16, kFp32 };
constexpr Element ElementOf(Dtype dtype) {
  return dtype == Dtype::kFp16 ? Element::kFp16 : Element::kBf16;
}

// c [m, n] = op(a) [m, k] op(b) [k, n] + beta c, every matrix column-major with its leading
// dimension.
struct GemmCall {
  bool transpose_a = false, transpose_b = false;
  int m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int lda = 0;
  const void* b = nullptr;
  int ldb = 0;
  Element input = Element::kFp32;  // of a and b
  float beta = 0;
  void* c = nullptr;
  int ldc = 0;
  Element output = Element::kFp32;
  bool tf32 = false;  // inputs of fp32 lose what tf32 does not hold
};

// For one stream.
class Cublas {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  // FailedPrecondition: libcublas.so.13 is not on the library path, or too old.
  // ResourceExhausted: no memory for its workspace.
  static absl::StatusOr<std::unique_ptr<Cublas>> Make(const Stream& stream);
  virtual ~Cublas() = default;

  // Enqueues and returns without waiting. Internal: cuBLAS refused.
  virtual absl::Status Gemm(const GemmCall& call) = 0;
};

}  // namespace babai::cuda
