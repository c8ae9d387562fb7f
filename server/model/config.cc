#include "server/model/config.h"

#include <cmath>

#include "server/model/limits.h"
#include "server/model/refusal.h"

namespace babai {
namespace {

absl::Status CheckRange(std::string_view file, std::string_view name, int64_t value, int64_t low,
                        int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadFile(file, std::string(name) + " is " + std::to_string(value) + ", must be in [" +
                           std::to_string(low) + ", " + std::to_string(high) + "]");
}

absl::Status CheckSizes(const ModelConfig& c, std::string_view file) {
  const struct {
    std::string_view name;
    int64_t value, low, high;
  } rows[] = {
      {"layers", c.layers, 1, kMaxLayers},
      {"hidden size", c.hidden, 1, kMaxHidden},
      {"intermediate size", c.intermediate, 1, kMaxIntermediate},
      {"vocabulary size", c.vocab, 1, kMaxVocab},
      {"heads", c.heads, 1, kMaxHeads},
      {"kv heads", c.kv_heads, 1, c.heads},
      {"head size", c.head_dim, 1, kMaxHeadDim},
      {"context length", c.max_positions, 1, kMaxPositions},
      {"position offset", c.position_offset, 0, 16},
  };
  for (const auto& row : rows) {
    const absl::Status status = CheckRange(file, row.name, row.value, row.low, row.high);
    if (!status.ok()) return status;
  }
  if (c.heads % c.kv_heads != 0) {
    return BadFile(file, std::to_string(c.kv_heads) + " kv heads do not divide " +
                             std::to_string(c.heads) + " heads");
  }
  return absl::OkStatus();
}

absl::Status CheckNumbers(const ModelConfig& c, std::string_view file) {
  const struct {
    std::string_view name;
    float value;
    bool ok;
  } rows[] = {
      {"norm epsilon", c.norm_eps, c.norm_eps > 0 && c.norm_eps < 1},
      {"norm weight offset", c.norm_weight_offset, c.norm_weight_offset >= 0},
      {"attention scale", c.attention_scale, c.attention_scale > 0},
      {"attention softcap", c.attention_softcap, c.attention_softcap >= 0},
      {"logit softcap", c.logit_softcap, c.logit_softcap >= 0},
      {"embedding scale", c.embedding_scale, c.embedding_scale > 0},
  };
  for (const auto& row : rows) {
    if (!row.ok || !std::isfinite(row.value)) {
      return BadFile(file,
                     std::string(row.name) + " is out of range: " + std::to_string(row.value));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRopes(const ModelConfig& c, std::string_view file) {
  if (c.ropes.size() > 16) return BadFile(file, "has more than 16 RoPE tables");
  for (const Rope& rope : c.ropes) {
    const auto pairs = static_cast<int64_t>(rope.inv_freq.size());
    if (pairs < 1 || 2 * pairs > c.head_dim) {
      return BadFile(file, "a RoPE table of " + std::to_string(pairs) +
                               " pairs does not fit heads of " + std::to_string(c.head_dim));
    }
    for (const float inv : rope.inv_freq) {
      if (!std::isfinite(inv) || inv < 0) return BadFile(file, "a RoPE frequency is not finite");
    }
    if (!std::isfinite(rope.attention_scale) || rope.attention_scale <= 0) {
      return BadFile(file, "the RoPE attention factor is out of range");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(const ModelConfig& c, std::string_view file) {
  if (static_cast<int64_t>(c.layer.size()) != c.layers) {
    return BadFile(file, "describes " + std::to_string(c.layer.size()) + " layers of " +
                             std::to_string(c.layers));
  }
  const bool rotary = c.position == PositionKind::kRope;
  for (const LayerConfig& layer : c.layer) {
    if (layer.sliding_window < 0 || layer.sliding_window > kMaxPositions) {
      return BadFile(file, "a sliding window is out of range");
    }
    if (rotary && (layer.rope < 0 || layer.rope >= static_cast<int>(c.ropes.size()))) {
      return BadFile(file, "a layer names a RoPE table that is not there");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTokenIds(const ModelConfig& c, std::string_view file) {
  const auto bad = [&](int32_t id) { return id < 0 || id >= c.vocab; };
  if (c.bos != -1 && bad(c.bos)) return BadFile(file, "the BOS token is outside the vocabulary");
  for (const int32_t id : c.eos) {
    if (bad(id)) return BadFile(file, "an EOS token is outside the vocabulary");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckModelConfig(const ModelConfig& config, std::string_view file) {
  for (const auto check : {CheckSizes, CheckNumbers, CheckRopes, CheckLayers, CheckTokenIds}) {
    if (absl::Status status = check(config, file); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace babai
