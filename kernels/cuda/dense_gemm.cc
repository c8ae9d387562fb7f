#include "kernels/cuda/dense_gemm.h"

namespace babai::cuda {

absl::StatusOr<std::unique_ptr<DenseGemm>> DenseGemm::Make(const Stream& stream) {
  absl::StatusOr<std::unique_ptr<Cublas>> cublas = Cublas::Make(stream);
  if (!cublas.ok()) return cublas.status();
  return std::make_unique<DenseGemm>(*std::move(cublas));
}

// Their matrices are column-major: W [n, k] is k x n there, x is k x m, y n x m.
absl::Status DenseGemm::Run(const DenseGemmArgs& a) {
  GemmCall call;
  call.transpose_a = true;
  call.m = a.n, call.n = a.m, call.k = a.k;
  call.a = a.weights, call.lda = a.k;
  call.b = a.x, call.ldb = a.k;
  call.c = a.y, call.ldc = a.y_stride == 0 ? a.n : a.y_stride;
  call.input = call.output = ElementOf(a.dtype);
  return cublas_->Gemm(call);
}

}  // namespace babai::cuda
