// The quality of the packed model on held-out tokens, from the last hidden states of two streams:
// the original's and the quantized model's. Each sequence of L tokens gives L - 1 predictions.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/block.h"
#include "server/jobs/forward.h"
#include "server/store/packed_model.h"

namespace babai {

// One side of the comparison. The stream has passed every block.
struct EvaluatedModel {
  const CalibrationStream* stream = nullptr;
  int64_t first_sequence = 0;  // of the stream: where the held-out ones begin
  const ModelParams* params = nullptr;
  std::shared_ptr<StackedWeights> head;  // [vocab, hidden]
};

// Perplexities, mean KL(P_reference || P_quantized) in nats and top-1 agreement of `sequences`
// held-out sequences. FailedPrecondition CALIBRATION_NON_FINITE: a logit is NaN or infinite.
absl::StatusOr<Evaluation> EvaluateStreams(const ModelConfig& config, EvaluatedModel reference,
                                           EvaluatedModel quantized, int64_t sequences,
                                           ThreadPool& pool, const std::function<bool()>& stop);

// Mean KL(P_original || P_i) in nats over all positions, of models that differ in their last hidden
// states [positions, hidden] alone. Fails like EvaluateStreams.
absl::StatusOr<std::vector<double>> MeanKls(const ModelConfig& config, const ModelParams& params,
                                            StackedWeights& head, absl::Span<const float> original,
                                            absl::Span<const std::vector<float>* const> others,
                                            ThreadPool& pool, const std::function<bool()>& stop);

}  // namespace babai
