#include "server/engine/linear_group.h"

namespace babai {

std::vector<std::string> LinearsOf(const ModelConfig& config, LinearGroup group) {
  switch (group) {
    case LinearGroup::kQkv:
      return {"q", "k", "v"};
    case LinearGroup::kO:
      return {"o"};
    case LinearGroup::kGateUp:
      return config.gated_mlp ? std::vector<std::string>{"gate", "up"}
                              : std::vector<std::string>{"up"};
    case LinearGroup::kDown:
      return {"down"};
  }
  return {};
}

int64_t InputsOf(const ModelConfig& config, LinearGroup group) {
  switch (group) {
    case LinearGroup::kO:
      return config.q_rows();
    case LinearGroup::kDown:
      return config.intermediate;
    default:
      return config.hidden;
  }
}

std::vector<int64_t> OutputsOf(const ModelConfig& config, LinearGroup group) {
  switch (group) {
    case LinearGroup::kQkv:
      return {config.q_rows(), config.kv_rows(), config.kv_rows()};
    case LinearGroup::kGateUp:
      return std::vector<int64_t>(config.gated_mlp ? 2 : 1, config.intermediate);
    default:
      return {config.hidden};
  }
}

}  // namespace babai
