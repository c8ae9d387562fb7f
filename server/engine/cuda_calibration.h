// The calibration forward pass on the GPU: many whole sequences through one decoder block at a
// time, split at its linears so that the quantizer can stand between them. What server/jobs/
// forward.h is on the CPU, on the kernels that the runner serves with: an fp32 residual stream,
// 16-bit activations (ActivationType), dense products by cuBLAS with the weights that will be
// served, rounded to 16 bits.
//
// For each group in turn: Inputs(group, ...) shows what its linears are given, then
// Advance(group, weights) goes on with what they are to be from now on. Both work in chunks of
// whole sequences.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/add_norm.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/embed.h"
#include "server/engine/block.h"
#include "server/engine/cuda_loader.h"
#include "server/engine/cuda_params.h"
#include "server/engine/linear_group.h"
#include "server/model/config.h"

namespace babai {

class CudaCalibration {
 public:
  struct Shape {
    int64_t sequences = 0, length = 0;
    // The MLP's inner activations of all sequences stay on the device, several times the hidden
    // states; else they are computed again when they are asked for: the same numbers.
    bool keeps_activations = true;
  };

  // InvalidArgument UNSUPPORTED_SHAPE: the kernels have no shape for this model.
  static absl::Status Check(const ModelConfig& config);
  static int64_t Bytes(const ModelConfig& config, const Shape& shape);

  // `params`: of every block. Everything is enqueued on `stream`, which `cublas` must be bound to;
  // they must outlive the object. Requires Check().
  static absl::StatusOr<std::unique_ptr<CudaCalibration>> Make(const ModelConfig& config,
                                                               const Shape& shape,
                                                               absl::Span<const BlockParams> params,
                                                               const cuda::Stream& stream,
                                                               cuda::Cublas& cublas);

  // Where a quantizer wants to know when its own work ends and the forward pass goes on.
  void OnForward(std::function<absl::Status()> enter) { enter_ = std::move(enter); }

  // Requires Shape::sequences sequences of ids in [0, vocab). The table, which goes to the device
  // by `loader`, is no longer needed when the call returns.
  absl::Status Embed(absl::Span<const float> embedding, const ModelParams& params,
                     absl::Span<const std::vector<int32_t>> sequences, CudaLoader& loader);
  // From a table and rows for positions (or null) on the device.
  absl::Status Embed(const cuda::EmbeddingTable& table, const float* position_rows,
                     absl::Span<const std::vector<int32_t>> sequences);
  void BeginBlock(int64_t block);

  // Calls see(x, tokens) with the group's inputs [tokens, InputsOf(group)] on the device, chunk
  // after chunk, of the first `limit` sequences; what it enqueues there may read them.
  absl::Status Inputs(LinearGroup group, int64_t limit,
                      absl::FunctionRef<absl::Status(const void*, int64_t)> see);
  // `weights`: the group's linears, one over the other, [n, k] 16-bit on the device. Those of
  // kGateUp must stay there until kDown has advanced, the others until what is enqueued is done.
  absl::Status Advance(LinearGroup group, const void* weights);

  // Waits. The residual stream of sequences [first, first + count), [count, length, hidden].
  absl::StatusOr<std::vector<float>> Hidden(int64_t first, int64_t count, CudaLoader& loader) const;

  const Shape& shape() const { return shape_; }
  cuda::Dtype dtype() const { return dtype_; }

 private:
  struct Chunk {
    int64_t first = 0, count = 0;  // sequences
    int tokens = 0;
    float* x = nullptr;
  };
  // Device pointers; null where the model has none.
  struct Ropes {
    std::vector<int> first, pairs;
    int sum = 0;
  };

  CudaCalibration(const ModelConfig& config, const Shape& shape, const cuda::Stream& stream,
                  cuda::Cublas& cublas);
  absl::Status Allocate();
  absl::Status LoadParams(absl::Span<const BlockParams> params);
  absl::Status PlanAttention();
  absl::Status MakeAngles();

  absl::Status ForEachChunk(int64_t limit, absl::FunctionRef<absl::Status(const Chunk&)> visit);
  absl::StatusOr<const void*> GroupInput(LinearGroup group, const Chunk& chunk);
  absl::Status Norm(const Chunk& chunk, const cuda::NormWeights& norm);
  absl::Status AddToResidual(const Chunk& chunk, const float* bias, const cuda::NormWeights& post);
  absl::Status Multiply(const void* x, int tokens, int64_t k, const void* weights, int64_t n,
                        void* y);
  absl::Status Attend(const Chunk& chunk, const void* weights);
  absl::Status RunMlp(const Chunk& chunk, const void* weights, void* out);
  void* InnerRows(const Chunk& chunk, int64_t width) const {
    return inner_.data<uint16_t>() + chunk.first * shape_.length * width;
  }
  cuda::Queue queue() const { return {stream_.get(), false}; }
  int64_t ChunkSequences() const;

  const ModelConfig config_;
  const Shape shape_;
  const cuda::Dtype dtype_;
  const cuda::Stream& stream_;
  cuda::Cublas& cublas_;
  std::function<absl::Status()> enter_ = [] { return absl::OkStatus(); };
  std::vector<CudaBlockParams> blocks_;
  int64_t block_ = 0;
  const void* mlp_weights_ = nullptr;  // of this block, once known

  cuda::Buffer params_, hidden_, inner_;               // of all sequences
  cuda::Buffer norm_, product_, wide_, activated_;     // of a chunk
  cuda::Buffer keys_, values_, plan_, angles_, rope_;  // likewise
  Ropes ropes_;
  // Parts of plan_.
  const int32_t *positions_ = nullptr, *slots_ = nullptr, *tables_ = nullptr;
  const cuda::AttentionSequence* sequences_ = nullptr;
  const cuda::PrefillTile* tiles_ = nullptr;
  int tiles_of_sequence_ = 0;
};

}  // namespace babai
