// All parameters of a model in the CPU's execution layout.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/engine/block.h"
#include "server/engine/linear.h"

namespace babai {

struct CpuBlock {
  BlockParams params;
  Linear qkv;  // rows of q, then k, then v
  Linear o;
  Linear gate_up;  // rows of gate, then up; only up where the MLP is not gated
  Linear down;
};

struct CpuWeights {
  ModelParams params;
  std::vector<CpuBlock> blocks;
  Linear head;
  // Row `id` of the embedding as fp32 [hidden]. Thread-safe. Requires id in [0, vocab).
  std::function<void(int32_t id, float* row)> embedding_row;

  int64_t bytes = 0;  // matrices in memory; rows looked up in a mapped file do not count
};

// The weights may refer to `model` through embedding_row, which shares it.
absl::StatusOr<std::unique_ptr<CpuWeights>> LoadCpuWeights(
    std::shared_ptr<const PackedModel> model);
absl::StatusOr<std::unique_ptr<CpuWeights>> LoadCpuWeights(const Checkpoint& checkpoint);

// CpuWeights::bytes of a packed model, without loading it; up to 15 rows a matrix too much, and an
// estimate where integers are entropy-coded.
// DataLoss: a matrix is missing.
absl::StatusOr<int64_t> PlanWeightBytes(const PackedModel& model);

}  // namespace babai
