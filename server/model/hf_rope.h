// The rotary part of a config.json, in either spelling: rope_theta with rope_scaling {type |
// rope_type}, or rope_parameters (transformers 5), flat or one object a layer type.
#pragma once

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "server/model/config.h"
#include "server/model/families.h"

namespace babai {

// Fills config.ropes: one table, or for WindowRule::kPattern two, of full and of windowed layers.
// `config` holds sizes and max_positions already.
absl::Status ReadHfRopes(const nlohmann::json& json, const Family& family, ModelConfig& config);

}  // namespace babai
