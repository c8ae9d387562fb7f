#include <algorithm>
#include <cmath>
#include <string>

#include "server/model/hf_rope.h"
#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/source_config.h"
#include "server/model/strict_json.h"

namespace babai {
namespace {

using Json = nlohmann::json;

constexpr char kFile[] = "config.json";
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

constexpr struct {
  std::string_view name;
  Activation activation;
} kActivations[] = {
    {"silu", Activation::kSilu},          {"swish", Activation::kSilu},
    {"gelu", Activation::kGeluErf},       {"gelu_new", Activation::kGeluTanh},
    {"gelu_fast", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu},
};

std::string KnownArchitectures() {
  std::string names;
  for (const Family& family : Families()) {
    for (const std::string_view name : family.hf_architectures) {
      names += (names.empty() ? "" : ", ") + std::string(name);
    }
  }
  return names;
}

absl::StatusOr<std::string> ArchitectureName(const Json& json) {
  const auto list = json.find("architectures");
  if (list == json.end() || list->is_null()) return std::string();
  if (!list->is_array() || list->size() != 1 || !(*list)[0].is_string()) {
    return BadFile(kFile, "architectures must be a list of one name");
  }
  return (*list)[0].get<std::string>();
}

absl::StatusOr<const Family*> ChooseFamily(const Json& json, std::string& architecture) {
  const absl::StatusOr<std::string> name = ArchitectureName(json);
  if (!name.ok()) return name.status();
  FieldReader in(json, kFile);
  const std::string model_type = in.String("model_type", "");
  if (!in.status().ok()) return in.status();
  const Family* family = name->empty() ? FindHfFamilyByModelType(model_type) : FindHfFamily(*name);
  if (family == nullptr) {
    return UnsupportedModel(kFile, "architecture " + Quoted(name->empty() ? model_type : *name) +
                                       " is not supported; these are: " + KnownArchitectures());
  }
  architecture = name->empty() ? std::string(family->hf_architectures[0]) : *name;
  return family;
}

// A model that also sees keeps the text model's fields in an object of their own.
const Json& TextPart(const Json& json) {
  const auto nested = json.find("text_config");
  return nested != json.end() && nested->is_object() ? *nested : json;
}

int64_t Positive(FieldReader& in, std::string_view key, int64_t high, int64_t fallback) {
  if (fallback == 0) return in.Int(key, 1, high);
  return in.Int(key, 1, high, fallback);
}

void ReadSizes(FieldReader& in, const Family& family, ModelConfig& c) {
  const HfKeys& keys = family.keys;
  const HfDefaults& defaults = family.defaults;
  c.vocab = Positive(in, "vocab_size", kMaxVocab, defaults.vocab);
  c.hidden = in.Int(keys.hidden, 1, kMaxHidden);
  c.layers = in.Int(keys.layers, 1, kMaxLayers);
  c.heads = Positive(in, keys.heads, kMaxHeads, defaults.heads);
  c.intermediate = Positive(in, keys.intermediate, kMaxIntermediate,
                            defaults.intermediate_per_hidden * c.hidden);
  const int64_t kv_default = defaults.kv_heads != 0 ? defaults.kv_heads : c.heads;
  c.kv_heads = keys.kv_heads.empty() ? c.heads : in.Int(keys.kv_heads, 1, kMaxHeads, kv_default);
  c.max_positions = in.Int(keys.positions, 1, kMaxPositions, defaults.positions);
  c.norm_eps = static_cast<float>(keys.norm_eps.empty()
                                      ? defaults.norm_eps
                                      : in.Number(keys.norm_eps, 1e-30, 0.1, defaults.norm_eps));

  const bool has_head_dim = !keys.head_dim.empty() && (in.Has(keys.head_dim) || defaults.head_dim);
  if (has_head_dim) {
    c.head_dim = Positive(in, keys.head_dim, kMaxHeadDim, defaults.head_dim);
  } else if (c.hidden % c.heads == 0) {
    c.head_dim = c.hidden / c.heads;
  } else {
    in.Fail(keys.heads, "does not divide the hidden size");
  }
}

absl::Status ReadActivation(FieldReader& in, const Family& family, ModelConfig& c) {
  const std::string name =
      in.String(family.keys.activation, std::string(family.defaults.activation));
  for (const auto& row : kActivations) {
    if (row.name != name) continue;
    c.activation = row.activation;
    return absl::OkStatus();
  }
  if (!in.status().ok()) return in.status();
  return UnsupportedModel(kFile, "activation " + Quoted(name) + " is not supported");
}

// Fields whose other value would need other mathematics: refused, never ignored.
absl::Status RefuseVariants(const Json& json, const Family& family, const ModelConfig& c) {
  FieldReader in(json, kFile);
  const struct {
    std::string_view family, field;
    bool wanted;
    std::string_view why;
  } rows[] = {
      {"opt", "do_layer_norm_before", true, "post-norm blocks (as in OPT-350m) are not supported"},
      {"opt", "_remove_final_layer_norm", false, "a missing final norm is not supported"},
      {"opt", "layer_norm_elementwise_affine", true, "norms without weights are not supported"},
      {"gpt2", "scale_attn_weights", true, "unscaled attention is not supported"},
      {"gpt2", "scale_attn_by_inverse_layer_idx", false,
       "per-layer attention scales are not supported"},
      {"gpt2", "add_cross_attention", false, "cross attention is not supported"},
      {"gemma3", "use_bidirectional_attention", false, "an encoder is not a language model"},
  };
  for (const auto& row : rows) {
    if (row.family != family.name) continue;
    const bool value = in.Bool(row.field, row.wanted);
    if (in.status().ok() && value != row.wanted) {
      return UnsupportedModel(kFile, std::string(row.field) + ": " + std::string(row.why));
    }
  }
  const int64_t projected = in.Int("word_embed_proj_dim", 1, kMaxHidden, c.hidden);
  if (in.status().ok() && projected != c.hidden) {
    return UnsupportedModel(kFile, "word_embed_proj_dim: projected embeddings are not supported");
  }
  return in.status();
}

// Per layer: whether it sees only a window.
absl::StatusOr<std::vector<bool>> WindowedLayers(const Json& json, FieldReader& in,
                                                 const Family& family, const ModelConfig& c) {
  std::vector<bool> windowed(c.layers, family.windows == WindowRule::kEveryLayer);
  const auto types = json.find("layer_types");
  const bool typed = types != json.end() && !types->is_null() &&
                     family.windows != WindowRule::kNone &&
                     family.windows != WindowRule::kEveryLayer;
  if (typed) {
    if (!types->is_array() || static_cast<int64_t>(types->size()) != c.layers) {
      return BadFile(kFile,
                     "layer_types must name each of the " + std::to_string(c.layers) + " layers");
    }
    for (int64_t i = 0; i < c.layers; ++i) {
      const Json& type = (*types)[i];
      if (type != "full_attention" && type != "sliding_attention") {
        return UnsupportedModel(kFile, "layer_types: only full_attention and sliding_attention");
      }
      windowed[i] = type == "sliding_attention";
    }
  } else if (family.windows == WindowRule::kUpperLayers) {
    const int64_t first = in.Int("max_window_layers", 0, kMaxLayers, 28);
    for (int64_t i = first; i < c.layers; ++i) windowed[i] = true;
  } else if (family.windows == WindowRule::kPattern) {
    const int64_t pattern = in.Int("sliding_window_pattern", 1, kMaxLayers, 6);
    for (int64_t i = 0; i < c.layers; ++i) windowed[i] = (i + 1) % pattern != 0;
  }
  return windowed;
}

absl::Status ReadLayers(const Json& json, const Family& family, ModelConfig& c) {
  FieldReader in(json, kFile);
  const bool used =
      family.windows != WindowRule::kUpperLayers || in.Bool("use_sliding_window", false);
  const int64_t fallback = family.windows == WindowRule::kPattern ? 4096 : 0;
  const int64_t window = used && family.windows != WindowRule::kNone
                             ? in.Int("sliding_window", 0, kMaxPositions, fallback)
                             : 0;
  const absl::StatusOr<std::vector<bool>> windowed = WindowedLayers(json, in, family, c);
  if (!windowed.ok()) return windowed.status();
  if (!in.status().ok()) return in.status();
  for (const bool is_windowed : *windowed) {
    const bool local_rope = family.windows == WindowRule::kPattern && is_windowed;
    c.layer.push_back({.sliding_window = is_windowed ? window : 0, .rope = local_rope ? 1 : 0});
  }
  return absl::OkStatus();
}

// The reference scales in the model's own type: 33.94 is 34 in bfloat16.
float EmbeddingScale(const Json& json, int64_t hidden) {
  const float scale = std::sqrt(static_cast<float>(hidden));
  const Json dtype = json.value("dtype", json.value("torch_dtype", Json()));
  const int kept_bits = dtype == "bfloat16" ? 8 : dtype == "float16" ? 11 : 24;
  int exponent = 0;
  const float mantissa = std::frexp(scale, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, kept_bits)), exponent - kept_bits);
}

absl::Status ReadNumbers(const Json& json, const Family& family, ModelConfig& c) {
  FieldReader in(json, kFile);
  const HfKeys& keys = family.keys;
  const auto number = [&](std::string_view key, double low, double fallback) {
    return key.empty() ? fallback : in.Number(key, low, 1e6, fallback);
  };
  const double given = family.defaults.attention_width;
  const double width = given != 0 ? given : static_cast<double>(c.head_dim);
  c.attention_scale = static_cast<float>(1 / std::sqrt(number(keys.attention_width, 1e-3, width)));
  c.attention_softcap = static_cast<float>(number(keys.attention_softcap, 0, 0));
  c.logit_softcap = static_cast<float>(number(keys.logit_softcap, 0, 0));
  return in.status();
}

void AddEos(const Json& json, FieldReader& in, ModelConfig& c) {
  for (const int64_t id : in.IntOrInts("eos_token_id", -1, kMaxInt32)) {
    const auto token = static_cast<int32_t>(id);
    const bool known = std::find(c.eos.begin(), c.eos.end(), token) != c.eos.end();
    if (id >= 0 && id < c.vocab && !known) c.eos.push_back(token);
  }
}

// Ids beyond the vocabulary can never be seen or produced (defaults left in small models): dropped.
absl::Status ReadTokenIds(const Json& root, const Json& text, const Json& generation,
                          ModelConfig& c) {
  for (const Json* json : {&generation, &text, &root}) {
    if (!json->is_object()) continue;
    FieldReader in(*json, json == &generation ? "generation_config.json" : kFile);
    AddEos(*json, in, c);
    const std::vector<int64_t> bos = in.IntOrInts("bos_token_id", -1, kMaxInt32);
    if (!in.status().ok()) return in.status();
    if (c.bos < 0 && !bos.empty() && bos[0] < c.vocab) c.bos = static_cast<int32_t>(bos[0]);
  }
  return absl::OkStatus();
}

bool LinearBias(FieldReader& in, const Family& family, std::string_view key) {
  return key.empty() ? family.defaults.linear_bias : in.Bool(key, family.defaults.linear_bias);
}

}  // namespace

absl::StatusOr<SourceConfig> ReadHfConfig(const Json& root, const Json& generation) {
  SourceConfig source;
  ModelConfig& c = source.model;
  const absl::StatusOr<const Family*> chosen = ChooseFamily(root, c.architecture);
  if (!chosen.ok()) return chosen.status();
  const Family& family = **chosen;
  const Json& json = TextPart(root);
  for (const Json* part : {&root, &json}) {
    if (part->contains("quantization_config")) {
      return UnsupportedFile(kFile, "the weights are already quantized (quantization_config)");
    }
  }
  source.family = &family;
  c.family = family.name;
  c.norm = family.norm;
  c.gated_mlp = family.gated_mlp;
  c.post_norms = family.post_norms;
  c.qk_norm = family.qk_norm;
  c.position = family.position;
  c.position_offset = family.position_offset;
  c.norm_weight_offset = family.hf_norm_weight_offset;

  FieldReader in(json, kFile);
  ReadSizes(in, family, c);
  source.attention_bias = LinearBias(in, family, family.keys.attention_bias);
  source.mlp_bias = LinearBias(in, family, family.keys.mlp_bias);
  c.tied_embedding = in.Bool("tie_word_embeddings", family.defaults.tied);
  absl::Status status = in.status();
  if (status.ok()) status = ReadActivation(in, family, c);
  if (status.ok()) status = RefuseVariants(json, family, c);
  if (status.ok()) status = ReadLayers(json, family, c);
  if (status.ok() && c.position == PositionKind::kRope) status = ReadHfRopes(json, family, c);
  if (status.ok()) status = ReadNumbers(json, family, c);
  if (status.ok()) status = ReadTokenIds(root, json, generation, c);
  if (status.ok() && family.scaled_embedding) {
    const bool own_dtype = json.contains("dtype") || json.contains("torch_dtype");
    c.embedding_scale = EmbeddingScale(own_dtype ? json : root, c.hidden);
  }
  if (status.ok()) status = CheckModelConfig(c, kFile);
  if (!status.ok()) return status;
  return source;
}

}  // namespace babai
