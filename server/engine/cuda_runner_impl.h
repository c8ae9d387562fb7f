// Runner on the CUDA kernels: one flat pass over the step's tokens on one stream. Decode steps are
// CUDA graphs, one for each bucket of batch sizes and of context lengths, captured when the bucket
// comes for the second time.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/choose_tokens.h"
#include "server/engine/cuda_batch.h"
#include "server/engine/cuda_weights.h"
#include "server/engine/runner.h"

namespace babai {

class CudaRunner final : public Runner {
 public:
  // InvalidArgument UNSUPPORTED_SHAPE: the kernels have no shape for this model.
  static absl::Status Check(const ModelConfig& config, const RunnerOptions& options);
  // Device memory beside the weights and the KV cache.
  static int64_t WorkBytes(const ModelConfig& config, const RunnerOptions& options,
                           const cuda::DeviceLimits& limits, const CudaGemmNeeds& needs);
  static int64_t KvBytesPerBlock(const ModelConfig& config, const RunnerOptions& options);

  // Requires Check(). ResourceExhausted OUT_OF_MEMORY, FailedPrecondition DEVICE_UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<CudaRunner>> Create(const ModelConfig& config,
                                                            std::unique_ptr<CudaWeights> weights,
                                                            const RunnerOptions& options);
  ~CudaRunner() override;

  const ModelConfig& config() const override { return config_; }
  const RunnerOptions& options() const override { return options_; }
  int64_t weight_bytes() const override { return weights_->bytes; }
  int64_t kv_bytes() const override {
    return options_.kv_blocks * KvBytesPerBlock(config_, options_);
  }
  absl::Status Step(const StepBatch& batch, float* logits) override;
  float* LogitsBuffer(int64_t rows) override {
    return rows <= LogitRows() ? host_logits_.data<float>() : nullptr;
  }
  bool ChoosesTokens() const override { return config_.vocab <= cuda::kMostChoiceVocab; }
  void CopyKvBlock(int32_t from, int32_t to) override;

 private:
  // The cache of one block of the model, without its memory.
  static cuda::KvCache CacheShape(const ModelConfig& config, const RunnerOptions& options);

  // Buffers of a step, for max_step_tokens tokens; logits for LogitRows().
  struct Work {
    cuda::Buffer x, h, qkv, attention, mlp, activated, y, angles, decode, head, logits, chunks;
  };
  struct Ropes {
    cuda::Buffer inv_freq, scales;  // of all ropes, one after another
    std::vector<int> first, pairs;  // of each
    int sum = 0;
  };
  struct Graph {
    cudaGraphExec_t exec = nullptr;
  };
  using GraphKey = std::pair<int, int>;  // tokens, splits

  CudaRunner(const ModelConfig& config, std::unique_ptr<CudaWeights> weights,
             const RunnerOptions& options);
  absl::Status Allocate();
  absl::Status AllocateCache();
  absl::Status LoadRopes();

  // The kernels of a step, in order, up to the head's norm.
  absl::Status EnqueueBlocks(const CudaStepShape& shape);
  absl::Status EnqueueStart(const CudaStepShape& shape);
  absl::Status EnqueueAttention(int64_t b, const CudaStepShape& shape);
  absl::Status EnqueueHeads(int64_t b, const CudaStepShape& shape);
  int MostSplits(int sequences) const;  // of each, in a step of so many decodes
  absl::Status EnqueueFeedForward(int64_t b, const CudaStepShape& shape);
  // Logits of the wanted rows [first, first + count) into work_.logits. kAllInOrder: these are all
  // rows of the step.
  enum class Rows { kAllInOrder, kWanted };
  absl::Status EnqueueHead(int first, int count, Rows rows);

  // The norm behind block b's attention or feed-forward part, which adds what that left in
  // work_.y unless its last product has added itself. b < 0: before the first block.
  cuda::AddNormArgs NormAfterAttention(int64_t b, int rows) const;
  cuda::AddNormArgs NormAfterFeedForward(int64_t b, int rows) const;
  // y = linear(norm(x)): one kernel where the product can norm.
  absl::Status NormedProduct(const cuda::AddNormArgs& norm, const CudaLinear& linear, void* y,
                             CudaLinear::How how);
  // A block's last product: adds to the residual stream if it can, else leaves work_.y.
  absl::Status LastProduct(const CudaLinear& linear, const void* x, int m, bool adds);
  absl::Status Product(const CudaLinear& linear, const void* x, int m, void* y,
                       CudaLinear::How how);
  // After a kernel that is no product.
  absl::Status Launched(cudaError_t error, absl::string_view what);

  absl::Status RunWhole(const CudaStepShape& shape);  // a decode step, through a graph
  absl::StatusOr<Graph*> GraphOf(const CudaStepShape& shape);
  // What the head left of rows [first, first + count): logits and chosen tokens.
  absl::Status ReadRows(int first, int count, absl::Span<TokenChoice> choices, float* logits);
  absl::Status CopyLogits(int first, int count, absl::Span<const TokenChoice> choices);
  absl::Status Guard(absl::Status status);
  int LogitRows() const;

  const ModelConfig config_;
  const std::unique_ptr<CudaWeights> weights_;
  const RunnerOptions options_;
  cuda::Stream stream_;
  cuda::Queue queue_;
  bool wide_before_ = false;  // the kernel enqueued last is a product whose turn was kWide
  CudaGemms gemms_;
  std::unique_ptr<CudaBatch> batch_;
  std::vector<std::pair<cuda::Buffer, cuda::Buffer>> cache_;  // keys and values of each layer
  Ropes ropes_;
  Work work_;
  cuda::Buffer host_logits_, host_results_;  // pinned, of LogitRows() rows
  std::set<GraphKey> seen_;
  std::map<GraphKey, Graph> graphs_;
  absl::Status lost_;  // not OK: the device has failed
};

}  // namespace babai
