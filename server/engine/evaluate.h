// Judging a model on a text: perplexity, and how far its predictions are from a reference model's.
//
// The text's tokens are cut into windows of C tokens that do not overlap; the tail is dropped. Each
// window starts with an empty context and gives C - 1 predictions, every one scored. Where the
// model's tokenizer adds a BOS, the first token of each window is replaced by it; targets stay the
// same.
//   perplexity  exp(mean negative log-likelihood), in nats
//   KL          sum over the vocabulary of P_ref (log P_ref - log P), at each prediction
//   percentile  the smallest value that at least that share of the predictions does not exceed
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/engine.h"
#include "server/engine/runner.h"

namespace babai {

// What a runner for an evaluation must allow: one sequence of `context` tokens, fp32 KV, steps
// small enough that the logits of a step stay near 64 MiB.
RunnerOptions EvaluationRunnerOptions(const ModelConfig& config, int64_t context,
                                      Numerics numerics);
// The logits of that step, for each model.
int64_t EvaluationLogitsBytes(const ModelConfig& config, const RunnerOptions& options);

// InvalidArgument naming the field: a context that a model can not hold, ids outside the
// vocabulary, a text shorter than a window.
absl::Status CheckEvaluation(const EvaluateRequest& request, const ModelConfig& config);

// `reference` may be null; both runners have EvaluationRunnerOptions() and the same vocabulary size
// (else InvalidArgument). Cancelled when `stop` returns true.
absl::StatusOr<EvaluateResult> EvaluateRunners(Runner& model, Runner* reference,
                                               const EvaluateRequest& request, ThreadPool& pool,
                                               const std::function<void(double)>& progress,
                                               const std::function<bool()>& stop);

}  // namespace babai
