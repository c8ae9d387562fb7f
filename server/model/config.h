// What a decoder-only language model is, as data: one plain description that every family fills in
// (server/model/families.cc has the table). The engine and the quantizer read this and nothing else, so a new
// family is a row in server/model/families.cc, not a class.
//
// Source: Hugging Face config.json fields and GGUF metadata keys; facts per family are cited in
// families.cc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

enum class NormKind { kRms, kLayer };
enum class Activation { kSilu, kGeluTanh, kGeluErf, kRelu };
enum class PositionKind { kRope, kLearned };

// Rotary embedding, half-split ("rotate half"): pairs are (i, i + rotary_dim / 2).
// `inv_freq` already holds every scaling rule (linear, dynamic at its base, llama3, yarn,
// longrope).
struct Rope {
  std::vector<float> inv_freq;   // [rotary_dim / 2]
  float attention_scale = 1.0f;  // multiplies cos and sin (yarn, longrope)
};

struct LayerConfig {
  int64_t sliding_window = 0;  // tokens visible, itself included; 0 = all
  int rope = 0;                // index into ModelConfig::ropes
};

struct ModelConfig {
  std::string family;        // "llama", "qwen2", "qwen3", "gpt2", "opt", "gemma3", ...
  std::string architecture;  // as the source spells it: "LlamaForCausalLM", GGUF "llama"

  int64_t vocab = 0, hidden = 0, intermediate = 0, layers = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;  // context length the model was made for

  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-5f;
  float norm_weight_offset = 0.0f;  // 1 where w - 1 is stored: Gemma from Hugging Face
  bool post_norms = false;  // norms on the attention and MLP outputs before the residual (Gemma)
  bool qk_norm = false;     // RMSNorm over each head of q and k before RoPE (Qwen3, Gemma 3)

  Activation activation = Activation::kSilu;
  bool gated_mlp = true;  // down(act(gate) * up); else down(act(up))

  PositionKind position = PositionKind::kRope;
  int64_t position_offset = 0;  // learned positions start at this row (OPT: 2)
  std::vector<Rope> ropes;
  std::vector<LayerConfig> layer;  // [layers]

  float attention_scale = 0.0f;    // multiplies q.k; 1/sqrt(head_dim) but for some families
  float attention_softcap = 0.0f;  // 0 = none
  float logit_softcap = 0.0f;      // 0 = none
  float embedding_scale = 1.0f;    // multiplies token embeddings (Gemma: sqrt(hidden))
  bool tied_embedding = false;     // head = embedding

  int32_t bos = -1;          // -1 = none
  std::vector<int32_t> eos;  // generation stops at any of them
  bool add_bos = false;      // the tokenizer puts BOS in front of a text

  int64_t q_rows() const { return heads * head_dim; }
  int64_t kv_rows() const { return kv_heads * head_dim; }
};

// Canonical tensor names, the same for every source and for the packed model on disk:
//   embed.weight [vocab, hidden]          embed_positions.weight [positions, hidden]
//   final_norm.weight|bias                head.weight [vocab, hidden] (absent when tied), head.bias
//   blocks.N.attn_norm.weight|bias        blocks.N.mlp_norm.weight|bias
//   blocks.N.post_attn_norm.weight        blocks.N.post_mlp_norm.weight        (post_norms)
//   blocks.N.q_norm.weight, k_norm.weight [head_dim]                           (qk_norm)
//   blocks.N.q|k|v|o|gate|up|down.weight  [out, in] row-major; .bias [out] if the source has one
// Rows of q and k are in half-split RoPE order whatever the source's order was.

// JSON form kept in the manifest of a packed model, so that it is served without its source.
std::string ModelConfigToJson(const ModelConfig& config);

// The reverse, exact to the bit, checked like any other source (CheckModelConfig).
// InvalidArgument INVALID_MODEL_FILE: not that form, or out of range.
absl::StatusOr<ModelConfig> ModelConfigFromJson(std::string_view json);

// Ranges and relations that the engine relies on: 1..512 layers, hidden <= 65536, vocab <= 1048576,
// kv_heads dividing heads, one LayerConfig a layer, RoPE tables that fit the head ... `file` names
// the source in the error (INVALID_MODEL_FILE).
absl::Status CheckModelConfig(const ModelConfig& config, std::string_view file);

}  // namespace babai
