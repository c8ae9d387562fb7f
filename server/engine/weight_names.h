// The names of a packed model's matrices, as runners stack them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/model/config.h"
#include "server/store/packed_model.h"

namespace babai {

inline constexpr std::string_view kEmbeddingName = "embed.weight";

// The head's matrix, which may be the embedding.
std::string HeadName(const ModelConfig& config);

// The stacks of a block: matrices that share their input, one over the other by rows.
struct BlockNames {
  std::vector<std::string> qkv, o, gate_up, down;
};
BlockNames NamesOf(const ModelConfig& config, int64_t block);

// Every matrix that a runner multiplies with: the head and those of the blocks.
std::vector<std::string> ProductNames(const ModelConfig& config);

// Whether every matrix that the configuration asks for is there. DataLoss INVALID_MODEL_FILE names
// one that is missing.
absl::Status CheckPresent(const PackedModel& model);

}  // namespace babai
