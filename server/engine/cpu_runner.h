// Runner on the CPU kernels. One flat pass over the step's tokens; a token's result does not depend
// on what else is in the step, nor on how its sequence was cut into steps (the kernels promise
// this).
#pragma once

#include <memory>
#include <vector>

#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/attention.h"
#include "server/engine/cpu_weights.h"
#include "server/engine/runner.h"

namespace babai {

class CpuRunner final : public Runner {
 public:
  // The pool must outlive the runner.
  static absl::StatusOr<std::unique_ptr<Runner>> Create(const ModelConfig& config,
                                                        std::unique_ptr<CpuWeights> weights,
                                                        const RunnerOptions& options,
                                                        ThreadPool& pool);

  const ModelConfig& config() const override { return config_; }
  const RunnerOptions& options() const override { return options_; }
  int64_t weight_bytes() const override { return weights_->bytes; }
  int64_t kv_bytes() const override;
  absl::Status Step(const StepBatch& batch, float* logits) override;
  void CopyKvBlock(int32_t from, int32_t to) override;

 private:
  // Buffers of a step, for max_step_tokens tokens.
  struct Work {
    cpu::AlignedBuffer x, h, qkv, attention, mlp, activated, y;
    cpu::AlignedBuffer matmul_scratch, attention_scratch;
  };
  struct LayerCache {
    cpu::AlignedBuffer k, v;
  };

  CpuRunner(const ModelConfig& config, std::unique_ptr<CpuWeights> weights,
            const RunnerOptions& options, ThreadPool& pool);
  absl::Status Allocate();
  void Embed(const StepBatch& batch);
  void SetSequences(const StepBatch& batch);
  void Attend(int64_t b, int64_t tokens);
  void FeedForward(int64_t b, int64_t tokens);
  void Head(const StepBatch& batch, float* logits);
  void Apply(const Linear& linear, const float* x, int64_t tokens, float* y);
  absl::Status CheckFinite(const float* logits, int64_t rows) const;

  const ModelConfig config_;
  const std::unique_ptr<CpuWeights> weights_;
  const RunnerOptions options_;
  ThreadPool& pool_;
  const cpu::KvShape shape_;
  RotaryAngles angles_;
  std::vector<LayerCache> cache_;
  std::vector<cpu::SequenceRows> sequences_;
  Work work_;
};

}  // namespace babai
