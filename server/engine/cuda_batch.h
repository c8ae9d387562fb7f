// A step's integers as the kernels read them: one pinned run of words, copied to the device at one
// stroke.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/finish_logits.h"
#include "server/engine/runner.h"
#include "server/model/config.h"

namespace babai {

// What a step's kernels are launched for.
struct CudaStepShape {
  int tokens = 0;         // rows of every buffer
  int decodes = 0;        // sequences with one token
  int splits = 0;         // blocks a sequence of these
  int prefill_tiles = 0;  // of the others
  int logits = 0;         // rows wanted
};

class CudaBatch {
 public:
  // Sizes for any batch within the options.
  static absl::StatusOr<CudaBatch> Make(const ModelConfig& config, const RunnerOptions& options);
  static int64_t Bytes(const ModelConfig& config, const RunnerOptions& options);

  // Writes the batch. Requires one within the options.
  CudaStepShape Fill(const StepBatch& batch);
  // Lengthens a batch of decodes only, all of whose logits are wanted, to `tokens` tokens: the rest
  // reads token 0, keeps no key and attends to nothing.
  void Pad(int tokens, CudaStepShape* shape);
  absl::Status Send(const cuda::Stream& stream) const;

  // On the device.
  const int32_t* tokens() const { return At(tokens_); }
  const int32_t* positions() const { return At(positions_); }
  const int32_t* slots() const { return At(slots_); }
  const int32_t* logits_rows() const { return At(logits_rows_); }
  const cuda::RowChoice* choices() const { return At<cuda::RowChoice>(choices_); }
  cuda::RowResult* results() const { return At<cuda::RowResult>(results_); }  // 0 when sent
  const cuda::AttentionSequence* decodes() const { return At<cuda::AttentionSequence>(decodes_); }
  const cuda::AttentionSequence* prefills() const { return At<cuda::AttentionSequence>(prefills_); }
  const cuda::PrefillTile* prefill_tiles() const { return At<cuda::PrefillTile>(tiles_); }
  const int32_t* tables() const { return At(tables_); }

 private:
  CudaBatch(const ModelConfig& config, const RunnerOptions& options);

  template <typename T = int32_t>
  T* At(int64_t word) const {
    return reinterpret_cast<T*>(device_.data<int32_t>() + word);
  }
  template <typename T = int32_t>
  T* HostAt(int64_t word) const {
    return reinterpret_cast<T*>(host_.data<int32_t>() + word);
  }
  void AddSequence(const StepBatch& batch, size_t s, CudaStepShape* shape);

  int heads_, kv_heads_, block_size_;
  // Where the arrays begin, in words; `end_` is the whole, `used_` what this batch needs of it.
  int64_t tokens_, positions_, slots_, logits_rows_, choices_, results_, decodes_, prefills_,
      tiles_, tables_, end_;
  int64_t used_ = 0, prefill_count_ = 0;
  cuda::Buffer host_, device_;
};

}  // namespace babai
