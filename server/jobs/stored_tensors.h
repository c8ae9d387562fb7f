// How each tensor of a checkpoint is stored in the packed model, and what it is worth once stored:
// the calibration forward uses the embedding, head and positions exactly as they will be served.
//
//   linears of blocks     by the recipe's solver (block_quantizer.h); recipe "dense": dense type
//   embed, head           8 bits: F1, symmetric absmax; 4 bits: F1, asymmetric, searched; groups of 32 (a
//                         whole row where 32 does not divide hidden); 16 bits or recipe "dense": dense
//                         type
//   embed_positions       dense type
//   norms, biases         fp32
//
// Dense type kSource keeps F32, F16 and BF16. Block-quantized sources (GGUF) become F32 under
// recipe "dense", where nothing may be rounded, and F16 else.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/packed_int.h"
#include "server/engine/block.h"
#include "server/model/checkpoint.h"
#include "server/quant/recipe.h"
#include "server/store/packed_model.h"

namespace babai {

// "blocks.3.q.weight": a matrix of a block.
bool IsBlockLinear(const TensorInfo& tensor);
bool IsInBlock(const TensorInfo& tensor);

DType StoredDenseType(const TensorInfo& tensor, const Recipe& recipe);

// A tensor as it is stored: `packed`, or `values` in `dtype`. `values` are always what it decodes
// to.
struct StoredTensorValues {
  std::optional<PackedInt> packed;
  DType dtype = DType::kF32;
  std::vector<float> values;
};

// Anything but a linear that the solver handles.
absl::StatusOr<StoredTensorValues> PrepareTensor(const Checkpoint& checkpoint,
                                                 const TensorInfo& tensor, const Recipe& recipe,
                                                 ThreadPool& pool,
                                                 const std::function<bool()>& stop);
absl::Status AddTensor(const TensorInfo& tensor, const StoredTensorValues& stored,
                       PackedModelWriter& writer);

// The checkpoint's parameters as they will be served. All arguments must outlive the source.
TensorSource SourceAsServed(const Checkpoint& checkpoint, const Recipe& recipe, ThreadPool& pool,
                            const std::function<bool()>& stop);

// The bits a weight of the linears with which the packed model takes recipe.target_bytes.
// InvalidArgument naming recipe.target_bytes: not even 1.
absl::StatusOr<double> TargetBits(const Checkpoint& checkpoint, const Recipe& recipe);

// Bytes of all tensors in the packed model. InvalidArgument: the recipe does not fit a linear's
// shape.
absl::StatusOr<int64_t> PackedBytes(const Checkpoint& checkpoint, const Recipe& recipe);

}  // namespace babai
