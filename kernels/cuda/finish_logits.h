// logits = cap(y + bias) in fp32: how a step ends. Notices what is not a finite number.
//
//   regime    any number of rows
//   roof      y read, logits written
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

struct FinishLogitsArgs {  // device pointers
  const void* y;           // [rows, vocab] of dtype
  const float* bias;       // [vocab], or null
  float softcap;           // > 0: logit = softcap * tanh(logit / softcap)
  float* logits;           // [rows, vocab]; overwritten
  int* not_finite;         // [rows]; set to 1 where a logit is a NaN or infinite, else left alone
  int rows, vocab;
  Dtype dtype;
};

cudaError_t FinishLogits(const FinishLogitsArgs& args, const Queue& queue);

}  // namespace babai::cuda
