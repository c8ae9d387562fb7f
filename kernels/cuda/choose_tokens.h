// The token of each row that wants one: the largest logit, or one drawn with its softmax.
//
//   regime    any number of rows; a block a row
//   method    with w = exp((logit - largest) / temperature): the first token, by ascending id, at
//             which the running sum of w exceeds u * (sum of w). Sums of chunks, left by
//             FinishLogits(), lead to the chunk; its logits are then summed again
//   limits    vocab up to 262144 (kMostChoiceVocab)
//   numerics  w in fp32, sums of chunks in fp32 and over chunks in fp64, in a fixed order. A row
//             depends on itself alone
#pragma once

#include <cstdint>

#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

constexpr int kMostChoiceVocab = 256 * kChunkLogits;

struct ChooseTokensArgs {  // device pointers, as FinishLogits() left them
  const float* logits;     // [rows, vocab]
  const LogitChunk* chunks;
  const RowChoice* choices;
  RowResult* results;  // token is overwritten in rows that want one
  int rows, vocab;
};

cudaError_t ChooseTokens(const ChooseTokensArgs& args, const Queue& queue);

}  // namespace babai::cuda
