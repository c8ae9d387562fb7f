// The four groups of linears of a block that share an input, in the order of the forward pass.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/model/config.h"

namespace babai {

enum class LinearGroup { kQkv, kO, kGateUp, kDown };
inline constexpr LinearGroup kLinearGroups[] = {LinearGroup::kQkv, LinearGroup::kO,
                                                LinearGroup::kGateUp, LinearGroup::kDown};
// "q", "k", "v" ...
std::vector<std::string> LinearsOf(const ModelConfig& config, LinearGroup group);
// Width of the group's input, and rows of each of its linears.
int64_t InputsOf(const ModelConfig& config, LinearGroup group);
std::vector<int64_t> OutputsOf(const ModelConfig& config, LinearGroup group);

}  // namespace babai
