#include "kernels/cuda/choose_tokens.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = kChunkLogits / kThreads;
static_assert(kMostChoiceVocab == kThreads * kChunkLogits);  // a thread a chunk

// The first value at which the running sum exceeds `target`, or the last above 0 if none does;
// `before` becomes the running sum before it.
struct Crossing {
  int at = 0;
  double before = 0;

  __device__ __forceinline__ Crossing(const double* values, int count, double target) {
    double running = 0;
    for (int i = 0; i < count; ++i) {
      if (values[i] <= 0) continue;
      at = i, before = running;
      running += values[i];
      if (running > target) return;
    }
  }
};

struct Shared {
  double values[kThreads];
  float tops[kThreads];
  int chunk;
  double target;  // within the chunk, in units of its sum
};

__device__ __forceinline__ float Largest(const float* tops, int count) {
  float top = tops[0];
  for (int i = 1; i < count; ++i) top = fmaxf(top, tops[i]);
  return top;
}

__device__ __forceinline__ int FirstLargest(const LogitChunk* chunks, const float* tops,
                                            int count) {
  int best = 0;
  for (int i = 1; i < count; ++i) {
    if (tops[i] > tops[best]) best = i;
  }
  return chunks[best].at;
}

__global__ void __launch_bounds__(kThreads) ChooseTokensKernel(ChooseTokensArgs a) {
  SHARED_VARIABLE(shared, Shared);
  StartStep();
  const int64_t row = blockIdx.x;
  const RowChoice choice = a.choices[row];
  if (!choice.wanted) return;
  const int count = LogitChunks(a.vocab), i = threadIdx.x;
  const LogitChunk* chunks = a.chunks + row * count;
  if (i < count) shared.tops[i] = chunks[i].top;
  __syncthreads();
  if (!(choice.temperature > 0)) {
    if (i == 0) a.results[row].token = FirstLargest(chunks, shared.tops, count);
    return;
  }
  // Sums behind chunks' own largest logits, as ones behind the row's.
  const float top = Largest(shared.tops, count);
  const auto factor = [&](int c) {
    return exp(double{shared.tops[c] - top} / double{choice.temperature});
  };
  shared.values[i] = i < count ? chunks[i].sum * factor(i) : 0;
  __syncthreads();
  if (i == 0) {
    double total = 0;
    for (int c = 0; c < count; ++c) total += shared.values[c];
    const Crossing crossing(shared.values, count, choice.u * total);
    shared.chunk = crossing.at;
    shared.target = (choice.u * total - crossing.before) / factor(crossing.at);
  }
  __syncthreads();
  const int first = shared.chunk * kChunkLogits + i * kPerThread;
  double weights[kPerThread], sum = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const float behind = first + j < a.vocab
                             ? a.logits[row * a.vocab + first + j] - shared.tops[shared.chunk]
                             : -__builtin_huge_valf();
    sum += weights[j] = expf(behind / choice.temperature);
  }
  shared.values[i] = sum;
  __syncthreads();
  // Every thread finds the same.
  const Crossing crossing(shared.values, kThreads, shared.target);
  if (i != crossing.at) return;
  a.results[row].token = first + Crossing(weights, kPerThread, shared.target - crossing.before).at;
}

}  // namespace

cudaError_t ChooseTokens(const ChooseTokensArgs& args, const Queue& queue) {
  return Launch(ChooseTokensKernel, dim3(args.rows), kThreads, 0, queue, args);
}

}  // namespace babai::cuda
