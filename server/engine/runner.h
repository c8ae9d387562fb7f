// One forward step for a batch of sequences over a paged KV cache. The contract is made for
// continuous batching and CUDA graphs: flat token arrays, block tables, no per-step allocation;
// every backend implements it. Prefill chunks and decode steps are the same call.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/sampling.h"
#include "server/model/checkpoint.h"
#include "server/model/config.h"
#include "server/store/packed_model.h"

namespace babai {

struct StepBatch {
  absl::Span<const int32_t> tokens;          // [t] new tokens, sequence after sequence
  absl::Span<const int32_t> positions;       // [t] their positions
  absl::Span<const int32_t> sequence_begin;  // [s + 1] ranges of `tokens`
  absl::Span<const int32_t> context_length;  // [s] tokens in the KV cache after this step
  absl::Span<const int32_t>
      block_tables;  // [s, max_blocks] physical KV block of each logical block
  int32_t max_blocks = 0;
  absl::Span<const int32_t> logits_rows;  // indices into `tokens` whose logits are wanted
  // One for each of logits_rows, or empty: all logits are wanted. Only for runners that choose.
  absl::Span<TokenChoice> choices;
};

// Numerics of a packed linear. kServing: int8 activations, the integer kernels. kReference: fp32
// activations on decoded weights; what Evaluate uses, so that only the weights are judged.
enum class Numerics { kServing, kReference };

struct RunnerOptions {
  int64_t kv_blocks = 0;          // physical blocks in the pool
  int64_t block_size = 16;        // tokens a block
  int64_t max_step_tokens = 512;  // upper limit of StepBatch::tokens
  int64_t max_sequences = 64;
  DType kv_dtype = DType::kF16;  // kF16 or kF32
  Numerics numerics = Numerics::kServing;
};

// Not thread-safe: one step at a time. Owns weights and KV pool.
class Runner {
 public:
  virtual ~Runner() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const RunnerOptions& options() const = 0;
  virtual int64_t weight_bytes() const = 0;  // resident bytes of weights in execution layout
  virtual int64_t kv_bytes() const = 0;

  // logits [logits_rows.size(), vocab] fp32, overwritten. Requires a batch within the options (the
  // scheduler guarantees it); rows whose token the runner chooses may be left alone. Internal
  // NON_FINITE_LOGITS: a wanted row holds a NaN or infinity.
  virtual absl::Status Step(const StepBatch& batch, float* logits) = 0;

  // Memory of the runner's own that Step() fills with up to `rows` rows without a further copy, for
  // as long as the runner lives; null: any memory is as good.
  virtual float* LogitsBuffer(int64_t /*rows*/) { return nullptr; }

  // Whether StepBatch::choices may be given.
  virtual bool ChoosesTokens() const { return false; }

  // Copies KV blocks (copy-on-write of a shared block).
  virtual void CopyKvBlock(int32_t from, int32_t to) = 0;
};

// Bytes a runner would take, before it is made.
struct MemoryPlan {
  int64_t weight_bytes = 0;        // in execution layout
  int64_t kv_bytes_per_block = 0;  // of all layers
  int64_t work_bytes = 0;          // buffers of a step
};
absl::StatusOr<MemoryPlan> PlanMemory(const PackedModel& model, const RunnerOptions& options);

// CPU runner of a packed model, or of a checkpoint as it is (self-calibration). The pool must
// outlive it.
absl::StatusOr<std::unique_ptr<Runner>> MakeCpuRunner(std::shared_ptr<const PackedModel> model,
                                                      const RunnerOptions& options,
                                                      ThreadPool& pool);
absl::StatusOr<std::unique_ptr<Runner>> MakeCpuRunner(const Checkpoint& checkpoint,
                                                      const RunnerOptions& options,
                                                      ThreadPool& pool);

}  // namespace babai
