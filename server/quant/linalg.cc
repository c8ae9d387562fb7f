#include "server/quant/linalg.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/mm.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <new>
#include <string>
#include <utility>

#include "server/reason/reason.h"

namespace babai::linalg {
namespace {

// Runs `body`, turning what LibTorch throws into a status.
template <typename Body>
absl::Status Guarded(Body&& body) {
  try {
    const c10::InferenceMode no_autograd;
    body();
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "", "out of memory");
  } catch (const c10::OutOfMemoryError& e) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  e.what_without_backtrace());
  } catch (const c10::Error& e) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "", e.what_without_backtrace());
  } catch (const std::exception& e) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "", e.what());
  }
}

// A view: LibTorch never writes through the const inputs below.
at::Tensor View(const float* data, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<float*>(data), {rows, cols}, at::kFloat);
}
at::Tensor View(const double* data, int64_t rows, int64_t cols) {
  return at::from_blob(const_cast<double*>(data), {rows, cols}, at::kDouble);
}

}  // namespace

absl::Status Multiply(const float* a, const float* b, float* c, int64_t m, int64_t n, int64_t k) {
  return Guarded([&] {
    at::Tensor out = View(c, m, n);
    at::mm_out(out, View(a, m, k), View(b, k, n));
  });
}

absl::Status MultiplyTransposed(const float* a, const float* b, float* c, int64_t m, int64_t n,
                                int64_t k) {
  return Guarded([&] {
    at::Tensor out = View(c, m, n);
    at::mm_out(out, View(a, m, k), View(b, n, k).t());
  });
}

absl::Status SolveRight(const double* l, int64_t k, double* b, int64_t rows) {
  return Guarded([&] {
    const at::Tensor lower = View(l, k, k);
    at::Tensor x = View(b, rows, k);
    // x (L L')^-1 = (x L'^-1) L^-1.
    const at::Tensor half =
        at::linalg_solve_triangular(lower.t(), x, /*upper=*/true, /*left=*/false);
    x.copy_(at::linalg_solve_triangular(lower, half, /*upper=*/false, /*left=*/false));
  });
}

absl::Status SubtractGram(const double* p, int64_t rows, int64_t k, double* s) {
  return Guarded([&] {
    const at::Tensor panel = View(p, rows, k);
    View(s, k, k).addmm_(panel.t(), panel, /*beta=*/1, /*alpha=*/-1);
  });
}

absl::StatusOr<int64_t> Cholesky(double* a, int64_t k) {
  int64_t failed_at = 0;
  const absl::Status status = Guarded([&] {
    // LibTorch factors column-major matrices. Read so, our lower triangle is an upper one, and the
    // upper factor of that lies in memory as our lower factor: no transposing copy either way.
    at::Tensor in_out = View(a, k, k).t();
    const auto [factor, info] = at::linalg_cholesky_ex(in_out, /*upper=*/true);
    in_out.copy_(factor);
    failed_at = *info.const_data_ptr<int32_t>();
  });
  if (!status.ok()) return status;
  return failed_at;
}

}  // namespace babai::linalg
