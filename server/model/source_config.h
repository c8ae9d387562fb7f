// A source's configuration, read: the ModelConfig and what the tensor table must still know.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/config.h"
#include "server/model/families.h"
#include "server/model/gguf.h"
#include "server/model/rope.h"

namespace babai {

struct SourceConfig {
  ModelConfig model;
  const Family* family = nullptr;
  bool gguf = false;
  bool attention_bias = false;  // Hugging Face; a GGUF's file tells by itself
  bool mlp_bias = false;
};

// From config.json and generation_config.json (null when there is none). Only the fields that
// families.h names are read; auto_map and everything else is ignored, code is never loaded.
// UNSUPPORTED_ARCHITECTURE: an unknown family, or a variant of a known one whose mathematics
// differs (the message says which). UNSUPPORTED_FORMAT: already quantized weights.
absl::StatusOr<SourceConfig> ReadHfConfig(const nlohmann::json& config,
                                          const nlohmann::json& generation);

// From a GGUF header. RoPE tables that the file keeps as tensors are left to `rope_factors`: the
// values of rope_freqs.weight or rope_factors_{long,short}.weight, empty when absent.
struct GgufRopeTensors {
  std::vector<float> freqs, long_factors, short_factors;
};
absl::StatusOr<SourceConfig> ReadGgufConfig(const GgufHeader& header, const GgufRopeTensors& rope,
                                            const std::string& file);

}  // namespace babai
