// Model families as rows of data: what their config is called, where their tensors are, what
// differs from the plain pre-norm decoder. To add a family, add a row in families.cc.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "absl/types/span.h"
#include "server/model/config.h"

namespace babai {

// When a source holds a tensor.
enum class Need : uint8_t {
  kNever,
  kAlways,
  kUntied,         // the head, unless it is the embedding
  kAttentionBias,  // where the config says so; in a GGUF, where the file has it
  kMlpBias,
};

// One canonical weight (with its bias), and what it is called elsewhere. '*' is the layer's number.
struct TensorRow {
  std::string_view canonical;  // without ".weight"
  std::string_view hf;         // behind the family's prefix; without ".weight"
  std::string_view gguf;       // without ".weight"
  Need weight = Need::kAlways;
  Need bias = Need::kNever;
  int8_t fused_part = -1;      // 0, 1, 2: the q, k or v rows of one fused tensor
  bool hf_transposed = false;  // stored [in, out] (GPT-2's Conv1D)
  bool rope_rows = false;      // rows follow the source's RoPE order
};

// Field names in config.json; empty: the family has no such field.
struct HfKeys {
  std::string_view hidden = "hidden_size";
  std::string_view intermediate = "intermediate_size";
  std::string_view layers = "num_hidden_layers";
  std::string_view heads = "num_attention_heads";
  std::string_view kv_heads = "num_key_value_heads";
  std::string_view head_dim = "head_dim";
  std::string_view positions = "max_position_embeddings";
  std::string_view norm_eps = "rms_norm_eps";
  std::string_view activation = "hidden_act";
  std::string_view attention_bias = "attention_bias";
  std::string_view mlp_bias = "";
  std::string_view attention_width = "";  // attention is scaled by its inverse root
  std::string_view attention_softcap = "";
  std::string_view logit_softcap = "";
};

// What an absent field means: the family's own defaults. 0: required, or derived (kv_heads from
// heads, head_dim from hidden and heads).
struct HfDefaults {
  int64_t vocab = 0, heads = 0, kv_heads = 0, head_dim = 0, positions = 2048;
  int64_t intermediate_per_hidden = 0;
  double attention_width = 0;  // 0: head_dim
  double norm_eps = 1e-6, rope_theta = 10000;
  std::string_view activation = "silu";
  bool tied = false, linear_bias = false;
};

// Which layers see only a window of tokens.
enum class WindowRule : uint8_t {
  kNone,
  kEveryLayer,   // wherever sliding_window is set (Mistral)
  kUpperLayers,  // with use_sliding_window, from max_window_layers on, or by layer_types (Qwen)
  kPattern,  // all but each sliding_window_pattern-th, or by layer_types; own RoPE base (Gemma 3)
};

struct Family {
  std::string_view name;
  absl::Span<const std::string_view> hf_architectures;
  std::string_view hf_model_type;
  std::string_view gguf_arch;                      // empty: no GGUF of this family is known
  absl::Span<const std::string_view> hf_prefixes;  // in front of every tensor but the head
  absl::Span<const TensorRow> tensors;
  HfKeys keys;
  HfDefaults defaults;

  NormKind norm = NormKind::kRms;
  bool gated_mlp = true;
  bool post_norms = false;
  bool qk_norm = false;
  PositionKind position = PositionKind::kRope;
  int64_t position_offset = 0;
  WindowRule windows = WindowRule::kNone;
  float hf_norm_weight_offset = 0;     // GGUF converters add it to the weights
  bool scaled_embedding = false;       // by sqrt(hidden)
  bool gguf_interleaved_rope = false;  // GGUF q and k rows pair (2i, 2i + 1)
};

absl::Span<const Family> Families();

// nullptr: unknown.
const Family* FindHfFamily(std::string_view architecture);
const Family* FindHfFamilyByModelType(std::string_view model_type);
const Family* FindGgufFamily(std::string_view arch);

}  // namespace babai
