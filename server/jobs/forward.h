// The calibration forward pass: many whole sequences through one decoder block at a time, fp32,
// split at its linears so that the quantizer can stand between them. What lies between linears is
// server/engine/block.h; products are those that serve dense models (kernels/cpu/matmul.h): as fast
// as LibTorch's or faster, on the same threads as everything here, and with the same bits whatever
// the chunks and the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/block.h"
#include "server/engine/linear_group.h"
#include "server/jobs/calibration.h"
#include "server/model/config.h"

namespace babai {

using Group = LinearGroup;
inline constexpr const auto& kGroups = kLinearGroups;

// Weights [n, k] of the linears of a group, stacked by rows: one product instead of three.
class StackedWeights {
 public:
  explicit StackedWeights(int64_t inputs) : inputs_(inputs) {}
  // Every linear is added once, before the first product.
  void Add(std::vector<float> weight);
  int64_t outputs() const { return outputs_; }
  // Column of `y` where the linear added as number `index` begins.
  int64_t begin(size_t index) const { return begins_[index]; }
  // y [tokens, outputs()] = x [tokens, inputs] W'. ResourceExhausted OUT_OF_MEMORY.
  absl::Status Multiply(const float* x, int64_t tokens, float* y, ThreadPool& pool);

 private:
  absl::Status Pack();

  int64_t inputs_, outputs_ = 0;
  std::vector<int64_t> begins_;
  std::vector<std::vector<float>> parts_;  // until they are packed
  std::optional<cpu::DenseWeights> packed_;
  cpu::AlignedBuffer scratch_;
};

// Hidden states of sequences of one length, and the stages of a block over them.
//
// For each group in turn: Inputs(group, ...) shows what the group's linears are given, then
// Advance(group, weights) goes on with what they are to be from now on. Both work in chunks of
// whole sequences, so that memory beyond the hidden states does not grow with their number.
class CalibrationStream {
 public:
  // The MLP's inner activations of all sequences, several times the hidden states, are kept if they
  // take at most `max_inner_bytes`, else computed again when they are asked for: the same numbers.
  CalibrationStream(const ModelConfig& config, std::vector<Sequence> sequences, ThreadPool& pool,
                    std::function<bool()> stop, int64_t max_inner_bytes = kMaxInnerBytes);
  static constexpr int64_t kMaxInnerBytes = int64_t{4} << 30;

  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  int64_t length() const { return length_; }
  const Sequence& tokens(int64_t sequence) const { return sequences_[sequence]; }
  const float* hidden(int64_t sequence) const {
    return hidden_.data() + sequence * length_ * config_.hidden;
  }

  // [sequences, length, hidden]: to go on from later.
  const std::vector<float>& all_hidden() const { return hidden_; }
  void SetHidden(std::vector<float> hidden) { hidden_ = std::move(hidden); }

  // embedding [vocab, hidden].
  void Embed(absl::Span<const float> embedding, const ModelParams& params);
  void BeginBlock(int64_t block, const BlockParams* params);

  // Calls see(rows, tokens) with the group's inputs, chunk after chunk, of the first `limit`
  // sequences. Cancelled when stop() says so, or what `see` returned.
  absl::Status Inputs(Group group, int64_t limit,
                      absl::FunctionRef<absl::Status(const float*, int64_t)> see);
  // The same beside those of another stream over the same sequences in the same order.
  struct PairedRows {
    const float* mine = nullptr;         // [tokens, InputsOf(group)]
    const float* other = nullptr;        // likewise
    const float* my_residual = nullptr;  // [tokens, hidden]: what the group's output is added to,
    const float* other_residual = nullptr;  // for groups kO and kDown
    int64_t tokens = 0;
  };
  absl::Status PairedInputs(Group group, int64_t limit, CalibrationStream& other,
                            absl::FunctionRef<absl::Status(const PairedRows&)> see);
  // Keeps the weights no longer than until the block ends.
  absl::Status Advance(Group group, std::shared_ptr<StackedWeights> weights);

 private:
  // Some whole sequences, and their rows of the hidden states.
  struct Chunk {
    int64_t first = 0, count = 0;  // sequences
    int64_t tokens = 0;
    float* x = nullptr;
  };
  Chunk ChunkAt(int64_t first, int64_t count);
  absl::Status ForEachChunk(int64_t limit, absl::FunctionRef<absl::Status(const Chunk&)> visit);
  absl::StatusOr<const float*> GroupInput(Group group, const Chunk& chunk);
  absl::Status Attend(const Chunk& chunk, StackedWeights& weights);
  absl::Status RunMlp(const Chunk& chunk, StackedWeights& weights, float* out);
  float* InnerRows(const Chunk& chunk, int64_t width) {
    return inner_.data() + chunk.first * length_ * width;
  }

  const ModelConfig& config_;
  const std::vector<Sequence> sequences_;
  ThreadPool& pool_;
  const std::function<bool()> stop_;
  const int64_t length_;
  const bool
      keeps_activations_;  // else the MLP's inner part is computed again whenever it is asked for
  int64_t block_ = 0;
  const BlockParams* params_ = nullptr;
  std::vector<int32_t> positions_;  // of one chunk: 0 .. length-1, again and again
  RotaryAngles angles_;             // of these
  std::vector<float> hidden_;       // [sequences, length, hidden], the residual stream
  std::vector<float> inner_;        // attention's outputs, then the MLP's: inputs of o and of down
  std::vector<float> norm_, product_, activated_;  // one chunk
  std::shared_ptr<StackedWeights> mlp_;            // of this block, unless activations are kept
};

}  // namespace babai
