#include "kernels/cuda/moments.h"

#include <algorithm>
#include <cstdint>

namespace babai::cuda {

// Column-major, x is k x tokens, and row r of h the first r + 1 entries of its column r. A strip of
// 2048 rows times 128 columns a block is one whole wave of 132 SMs.
absl::Status AddMoments(const MomentsArgs& a, Cublas& cublas) {
  constexpr int kStrip = 2048;
  for (int first = 0; first < a.k; first += kStrip) {
    const int rows = std::min(kStrip, a.k - first);
    GemmCall call;
    call.transpose_b = true;
    call.m = first + rows, call.n = rows, call.k = a.tokens;
    call.a = a.x, call.lda = a.k;
    call.b = static_cast<const uint16_t*>(a.x) + first, call.ldb = a.k;
    call.input = ElementOf(a.dtype);
    call.beta = 1;
    call.c = a.h + int64_t{first} * a.k, call.ldc = a.k;
    if (absl::Status s = cublas.Gemm(call); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace babai::cuda
