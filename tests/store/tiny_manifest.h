// What a packed model needs beside its tensors.
#pragma once

#include <cmath>

#include "server/store/packed_model.h"

namespace babai {

inline ModelConfig TinyConfig() {
  ModelConfig config;
  config.family = "llama";
  config.architecture = "LlamaForCausalLM";
  config.vocab = 5;
  config.hidden = 32;
  config.intermediate = 96;
  config.layers = 1;
  config.heads = config.kv_heads = 1;
  config.head_dim = 32;
  config.max_positions = 16;
  config.attention_scale = 0.1f;
  config.ropes.resize(1);
  config.ropes[0].inv_freq.assign(16, 0.5f);
  config.layer.resize(1);
  return config;
}

inline Manifest TinyManifest() {
  Manifest manifest;
  manifest.name = "tiny";
  manifest.tool_version = "0";
  manifest.config_json = ModelConfigToJson(TinyConfig());
  manifest.recipe_json = R"({"b":1,"a":0.01})";
  manifest.weights = 1000;
  manifest.linears.push_back({.name = "blocks.0.q.weight", .rows = 7, .relative_error = 0.125});
  manifest.linears[0].entropy_bits = std::nan("");
  manifest.warnings = {"a warning"};
  return manifest;
}

}  // namespace babai
