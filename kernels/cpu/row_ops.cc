#include "kernels/cpu/row_ops.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

// Less than about 10 us of work is done by the caller: threads take a microsecond to meet.
constexpr int64_t kSerialFloats = 16 << 10;

void ForRows(int64_t m, int64_t k, ThreadPool& pool,
             absl::FunctionRef<void(int64_t, int64_t)> rows) {
  if (m * k <= kSerialFloats) return rows(0, m);
  pool.ParallelFor(m, 1, rows);
}

// Calls fn(offset) for each segment of each row.
template <class Fn>
void ForSegments(const Rows& rows, ThreadPool& pool, Fn fn) {
  const int64_t width = rows.k / rows.segments;
  ForRows(rows.m, rows.k, pool, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t s = 0; s < rows.segments; ++s) fn(r * rows.ld + s * width, width);
    }
  });
}

}  // namespace

void RmsNorm(const float* x, float* y, const Rows& rows, const float* weight, float weight_offset,
             float eps, ThreadPool& pool) {
  ForSegments(rows, pool, [&](int64_t at, int64_t n) {
    Kernels().rms_norm(x + at, y + at, n, weight, weight_offset, eps);
  });
}

void LayerNorm(const float* x, float* y, const Rows& rows, const float* weight, const float* bias,
               float eps, ThreadPool& pool) {
  ForSegments(rows, pool, [&](int64_t at, int64_t n) {
    Kernels().layer_norm(x + at, y + at, n, weight, bias, eps);
  });
}

void RopeAngles(const int32_t* positions, int64_t m, const double* inv_freq, int64_t half,
                double scale, float* cos, float* sin) {
  for (int64_t t = 0; t < m; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = positions[t] * inv_freq[i];
      cos[t * half + i] = static_cast<float>(std::cos(angle) * scale);
      sin[t * half + i] = static_cast<float>(std::sin(angle) * scale);
    }
  }
}

void ApplyRope(float* x, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const float* cos,
               const float* sin, int64_t half, ThreadPool& pool) {
  ForRows(m, heads * head_dim, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        Kernels().rope(x + t * ld + h * head_dim, cos + t * half, sin + t * half, half);
      }
    }
  });
}

void Activate(Activation f, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t m,
              int64_t k, ThreadPool& pool) {
  ForRows(m, k, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Kernels().activate(f, x + t * ldx, nullptr, y + t * ldy, k);
    }
  });
}

void ActivateGated(Activation f, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t m,
                   int64_t k, ThreadPool& pool) {
  ForRows(m, k, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      Kernels().activate(f, x + t * ldx, x + t * ldx + k, y + t * ldy, k);
    }
  });
}

void AddRows(float* x, int64_t ldx, const float* y, int64_t ldy, int64_t m, int64_t k,
             ThreadPool& pool) {
  ForRows(m, k, pool, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) Kernels().add(x + t * ldx, y + t * ldy, k);
  });
}

int64_t ArgMax(const float* x, int64_t n) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  int64_t best = -1;
  float most = -kInfinity;
  for (int64_t i = 0; i < n; ++i) {
    if (!(x[i] < kInfinity)) return -1;
    if (x[i] > most || best < 0) {
      most = x[i];
      best = i;
    }
  }
  return best;
}

double LogSumExp(const float* x, int64_t n) {
  const int64_t best = ArgMax(x, n);
  if (best < 0) return std::numeric_limits<double>::quiet_NaN();
  return x[best] + std::log(Kernels().exp_sum(x, n, x[best], 1.0f, nullptr));
}

void Softmax(float* x, int64_t n, float inverse_temperature) {
  const int64_t best = ArgMax(x, n);
  const float most = best < 0 ? std::numeric_limits<float>::quiet_NaN() : x[best];
  const double sum = Kernels().exp_sum(x, n, most, inverse_temperature, x);
  const float inverse = static_cast<float>(1.0 / sum);
  for (int64_t i = 0; i < n; ++i) x[i] *= inverse;
}

}  // namespace babai::cpu
