// Llama-3-8B's shape, for benches with random weights.
#pragma once

#include <cmath>

#include "server/model/config.h"

namespace babai {

inline ModelConfig Llama3Shape(int layers = 32) {
  ModelConfig c;
  c.family = "llama";
  c.vocab = 128256, c.hidden = 4096, c.intermediate = 14336, c.layers = layers;
  c.heads = 32, c.kv_heads = 8, c.head_dim = 128, c.max_positions = 8192;
  Rope rope;
  for (int i = 0; i < c.head_dim / 2; ++i) {
    rope.inv_freq.push_back(static_cast<float>(std::pow(500000.0, -2.0 * i / c.head_dim)));
  }
  c.ropes = {rope};
  c.layer.resize(c.layers);
  c.attention_scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  return c;
}

}  // namespace babai
