// What stands between the matrix products of a decoder block, on [m, k] fp32 rows. Each row's
// result depends on that row alone: the same bits for any m and any number of threads. Outputs may
// be the inputs themselves (in place) unless said otherwise.
#pragma once

#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace babai::cpu {

// Rows of k floats, ld floats apart, each row cut into `segments` equal parts of k / segments that
// are normalised on their own (1: whole rows; the number of heads for per-head q and k norms).
struct Rows {
  int64_t m = 0;
  int64_t k = 0;
  int64_t ld = 0;
  int64_t segments = 1;
};

// y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset). weight [k / segments] or null (all 1).
// Gemma stores weight - 1 and asks for weight_offset = 1.
void RmsNorm(const float* x, float* y, const Rows& rows, const float* weight, float weight_offset,
             float eps, ThreadPool& pool);

// y = (x - mean) / sqrt(variance + eps) * weight + bias. weight, bias [k / segments] or null.
void LayerNorm(const float* x, float* y, const Rows& rows, const float* weight, const float* bias,
               float eps, ThreadPool& pool);

// cos and sin [m, half], of position * inv_freq[i] computed in double (an fp32 angle is off by
// 0.004 rad at position 100 000), times `scale` (1 unless the model's rope scaling asks for more).
void RopeAngles(const int32_t* positions, int64_t m, const double* inv_freq, int64_t half,
                double scale, float* cos, float* sin);

// Rotates pairs (i, i + half) of the first 2 * half features of each head, in place ("rotate
// half"). x [m, heads * head_dim], rows ld apart; 2 * half <= head_dim.
void ApplyRope(float* x, int64_t m, int64_t ld, int64_t heads, int64_t head_dim, const float* cos,
               const float* sin, int64_t half, ThreadPool& pool);

enum class Activation { kIdentity, kSilu, kGeluTanh, kGeluErf, kRelu };

// y = f(x), rows of k. ldx and ldy may differ.
void Activate(Activation f, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t m,
              int64_t k, ThreadPool& pool);

// y = f(gate) * up, where a row of x holds gate [k] and then up [k]: the output of the stacked
// gate/up product. y must not be x unless ldy == ldx.
void ActivateGated(Activation f, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t m,
                   int64_t k, ThreadPool& pool);

// x += y, rows of k.
void AddRows(float* x, int64_t ldx, const float* y, int64_t ldy, int64_t m, int64_t k,
             ThreadPool& pool);

// Over one row of logits. ArgMax: the first of the largest; -1 if any value is a NaN or +infinity.
int64_t ArgMax(const float* x, int64_t n);
// log(sum(exp(x))), accumulated in double.
double LogSumExp(const float* x, int64_t n);
// x = softmax(x * inverse_temperature), in place.
void Softmax(float* x, int64_t n, float inverse_temperature);

}  // namespace babai::cpu
