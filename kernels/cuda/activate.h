// out = f(gate + gate_bias) * (up + up_bias), or f(up + up_bias) where there is no gate.
//
//   regime    any number of rows
//   roof      gate and up read, out written
//   limits    width and strides multiples of 8 values, rows 16-byte aligned
//   numerics  fp32 between the read and the one rounding
#pragma once

#include <cstdint>

#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

enum class ActivationKind { kSilu, kGeluTanh, kGeluErf, kRelu };

struct ActivateArgs {                // device pointers
  RowsOf gate, up;                   // [rows, width] of dtype; gate.data null: no gate
  const float *gate_bias, *up_bias;  // [width], or null
  void* out;                         // [rows, width] of dtype, contiguous; overwritten
  int rows, width;
  ActivationKind kind;
  Dtype dtype;
};

cudaError_t Activate(const ActivateArgs& args, const Queue& queue);

}  // namespace babai::cuda
