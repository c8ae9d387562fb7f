// logits = cap(y + bias) in fp32: how a step ends. Notices what is not a finite number, and gets
// ready to choose tokens (choose_tokens.h).
//
//   regime    any number of rows
//   roof      y read, logits written
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

// How a row's token is chosen.
struct RowChoice {
  double u = 0;           // in [0, 1)
  float temperature = 0;  // 0: the largest logit, the lowest id among equals
  int32_t wanted = 0;     // 0: no token is
};

struct RowResult {
  int32_t not_finite = 0;  // set to 1 where a logit is a NaN or infinite, else left alone
  int32_t token = 0;       // by ChooseTokens()
};

// What choosing needs to know of kChunkLogits neighbours: the largest, the first place of it, and
// the sum of exp((logit - top) / temperature).
constexpr int kChunkLogits = 1024;
struct LogitChunk {
  float top;
  int32_t at;
  float sum;
};
__host__ __device__ constexpr int LogitChunks(int vocab) {
  return (vocab + kChunkLogits - 1) / kChunkLogits;
}

struct FinishLogitsArgs {    // device pointers
  const void* y;             // [rows, vocab] of dtype
  const float* bias;         // [vocab], or null
  float softcap;             // > 0: logit = softcap * tanh(logit / softcap)
  float* logits;             // [rows, vocab]; overwritten
  RowResult* results;        // [rows]
  const RowChoice* choices;  // [rows]
  LogitChunk* chunks;        // [rows, LogitChunks(vocab)]; those of rows that want a token are
  int rows, vocab;           // overwritten
  Dtype dtype;
};

cudaError_t FinishLogits(const FinishLogitsArgs& args, const Queue& queue);

}  // namespace babai::cuda
