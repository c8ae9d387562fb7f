#include "server/engine/weight_names.h"

#include "server/engine/block.h"
#include "server/reason/reason.h"

namespace babai {

std::string HeadName(const ModelConfig& config) {
  return std::string(config.tied_embedding ? kEmbeddingName : "head.weight");
}

BlockNames NamesOf(const ModelConfig& config, int64_t block) {
  BlockNames names;
  for (const char* name : {"q.weight", "k.weight", "v.weight"}) {
    names.qkv.push_back(BlockTensor(block, name));
  }
  names.o = {BlockTensor(block, "o.weight")};
  if (config.gated_mlp) names.gate_up.push_back(BlockTensor(block, "gate.weight"));
  names.gate_up.push_back(BlockTensor(block, "up.weight"));
  names.down = {BlockTensor(block, "down.weight")};
  return names;
}

std::vector<std::string> ProductNames(const ModelConfig& config) {
  std::vector<std::string> names = {HeadName(config)};
  for (int64_t b = 0; b < config.layers; ++b) {
    const BlockNames block = NamesOf(config, b);
    for (const auto* stack : {&block.qkv, &block.o, &block.gate_up, &block.down}) {
      names.insert(names.end(), stack->begin(), stack->end());
    }
  }
  return names;
}

absl::Status CheckPresent(const PackedModel& model) {
  std::vector<std::string> names = ProductNames(model.config());
  names.emplace_back(kEmbeddingName);
  for (const std::string& name : names) {
    if (model.Has(name)) continue;
    return Refuse(absl::StatusCode::kDataLoss, reason::kInvalidModelFile, name,
                  "is missing from the packed model");
  }
  return absl::OkStatus();
}

}  // namespace babai
