// Quantizes a model block by block, true-sequentially: inside a block each group of linears sees
// inputs made by everything quantized before it, and every sequence passes each block once.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cpu/thread_pool.h"
#include "server/jobs/forward.h"
#include "server/model/checkpoint.h"
#include "server/quant/layer.h"
#include "server/quant/recipe.h"
#include "server/store/packed_model.h"

namespace babai {

// "block-00007.safetensors"
std::string BlockFileName(int64_t block);

// What the quantizer works with. Nothing is owned.
struct QuantizerInputs {
  const Checkpoint& checkpoint;
  const Recipe& recipe;
  PackedModelWriter& writer;
  ThreadPool& pool;
  const std::function<bool()>& stop;
  // Sequences through the quantized model; the first `training` give moments. Null: the recipe
  // needs none and nothing is evaluated.
  CalibrationStream* stream = nullptr;
  int64_t training = 0;
  // Sequences through the original model: all of `stream` if the recipe needs_original(), else only
  // the held-out ones. Or null.
  CalibrationStream* reference = nullptr;
  // recipe.bits or recipe.target_bits of each linear by its name, where they differ from the
  // recipe's.
  std::map<std::string, double> bits;
};

// Of the inputs of a group of linears by the recipe; they share it.
Rotation InputRotation(const Recipe& recipe, int64_t block, Group group, int64_t inputs);

// The recipe for one linear whose bits were allocated.
Recipe WithBits(Recipe recipe, double bits);

// What every quantizer of blocks does alike: says in which block an error happened, reports a
// linear, and stores what is not a matrix (norms and biases).
absl::Status InBlock(int64_t block, const absl::Status& status);
LinearReport MakeReport(const std::string& name, const QuantizedLinear& linear);
absl::Status AddBlockVectors(const Checkpoint& checkpoint, int64_t block, const Recipe& recipe,
                             ThreadPool& pool, const std::function<bool()>& stop,
                             PackedModelWriter& writer,
                             const std::map<std::string, NormParams>& tweaked = {});

class BlockQuantizer {
 public:
  explicit BlockQuantizer(const QuantizerInputs& inputs);

  // Solves block after block; each becomes a file of the packed model. `on_linear` gets each
  // linear's report, `on_group` (block, fraction of the block) after each group. Errors name the
  // block.
  absl::Status Run(absl::FunctionRef<void(const LinearReport&, absl::Duration)> on_linear,
                   absl::FunctionRef<void(int64_t, double)> on_group);

 private:
  struct Block {
    std::map<std::string, std::vector<float>> weights;  // "q", "k" ... of the block's linears
    BlockParams original, served;                       // served: with tweaked norms
  };
  // What is known about the inputs of a group.
  struct GroupMetric {
    std::optional<Factor> factor;
    std::optional<Drift> drift;
    std::optional<ResidualDrift> residual;
    Rotation in;
  };
  using OnLinear = absl::FunctionRef<void(const LinearReport&, absl::Duration)>;

  absl::StatusOr<Block> ReadBlock(int64_t block) const;
  absl::Status RunBlock(int64_t index, Block block, OnLinear on_linear,
                        absl::FunctionRef<void(double)> on_group);
  absl::Status RunGroup(int64_t index, Group group, Block& block, OnLinear on_linear);
  absl::StatusOr<GroupMetric> MeasureInputs(int64_t index, Group group);
  absl::Status MeasureDrift(Group group, GroupMetric& metric);
  absl::Status TweakNorm(Group group, Block& block);
  absl::StatusOr<QuantizedLinear> Solve(int64_t index, const std::string& linear,
                                        const std::vector<float>& w, const GroupMetric& metric);

  const QuantizerInputs in_;
  const ModelConfig& config_;
};

}  // namespace babai
