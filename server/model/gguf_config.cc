#include <cmath>
#include <string>

#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/source_config.h"

namespace babai {
namespace {

using Kind = RopeRule::Kind;

std::string KnownArchitectures() {
  std::string names;
  for (const Family& family : Families()) {
    if (family.gguf_arch.empty()) continue;
    names += (names.empty() ? "" : ", ") + std::string(family.gguf_arch);
  }
  return names;
}

// "llama" + ".block_count"
std::string Key(const Family& family, std::string_view name) {
  return std::string(family.gguf_arch) + "." + std::string(name);
}

int64_t VocabSize(GgufFields& in, const Family& family) {
  const auto* tokens = in.List<std::string>("tokenizer.ggml.tokens");
  if (tokens == nullptr) return in.Int(Key(family, "vocab_size"), 1, kMaxVocab);
  if (tokens->empty() || static_cast<int64_t>(tokens->size()) > kMaxVocab) {
    in.Fail("tokenizer.ggml.tokens", "must hold 1 to " + std::to_string(kMaxVocab) + " tokens");
  }
  return static_cast<int64_t>(tokens->size());
}

void ReadSizes(GgufFields& in, const Family& family, ModelConfig& c) {
  const auto key = [&](std::string_view name) { return Key(family, name); };
  c.vocab = VocabSize(in, family);
  c.hidden = in.Int(key("embedding_length"), 1, kMaxHidden);
  c.intermediate = in.Int(key("feed_forward_length"), 1, kMaxIntermediate);
  c.layers = in.Int(key("block_count"), 1, kMaxLayers);
  c.heads = in.Int(key("attention.head_count"), 1, kMaxHeads);
  c.kv_heads = in.Int(key("attention.head_count_kv"), 1, kMaxHeads, c.heads);
  c.max_positions = in.Int(key("context_length"), 1, kMaxPositions);
  c.norm_eps =
      static_cast<float>(in.Number(key(c.norm == NormKind::kRms ? "attention.layer_norm_rms_epsilon"
                                                                : "attention.layer_norm_epsilon"),
                                   1e-30, 0.1));
  if (c.hidden % c.heads != 0 && !in.Has(key("attention.key_length"))) {
    in.Fail(key("attention.head_count"), "does not divide the embedding length");
  }
  c.head_dim = in.Int(key("attention.key_length"), 1, kMaxHeadDim, c.hidden / c.heads);
  if (in.Int(key("attention.value_length"), 1, kMaxHeadDim, c.head_dim) != c.head_dim) {
    in.Fail(key("attention.value_length"), "differs from the key length");
  }
}

absl::StatusOr<Kind> ScalingKind(GgufFields& in, const Family& family) {
  const std::string type = in.String(Key(family, "rope.scaling.type"), "none");
  if (type == "none") return Kind::kDefault;
  if (type == "linear") return Kind::kLinear;
  if (type == "yarn") return Kind::kYarn;
  if (type == "longrope") return Kind::kLongRope;
  return UnsupportedModel(in.file(), "RoPE scaling of type " + Quoted(type) + " is not supported");
}

absl::Status ReadLongFactors(const GgufRopeTensors& tensors, const std::string& file,
                             RopeRule& rule) {
  rule.short_factor.assign(tensors.short_factors.begin(), tensors.short_factors.end());
  rule.long_factor.assign(tensors.long_factors.begin(), tensors.long_factors.end());
  const auto pairs = static_cast<size_t>(rule.rotary_dim / 2);
  if (rule.short_factor.size() != pairs || rule.long_factor.size() != pairs) {
    return BadFile(file,
                   "longrope needs rope_factors_short.weight and rope_factors_long.weight of " +
                       std::to_string(pairs) + " numbers");
  }
  return absl::OkStatus();
}

// Llama 3's rule arrives as divisors of the frequencies.
absl::Status DivideBy(const std::vector<float>& divisors, const std::string& file, Rope& rope) {
  if (divisors.empty()) return absl::OkStatus();
  if (divisors.size() != rope.inv_freq.size()) {
    return BadTensor(file, "rope_freqs.weight",
                     "has " + std::to_string(divisors.size()) + " numbers, expected " +
                         std::to_string(rope.inv_freq.size()));
  }
  for (size_t i = 0; i < divisors.size(); ++i) {
    if (!(divisors[i] > 0)) return BadTensor(file, "rope_freqs.weight", "must be above zero");
    rope.inv_freq[i] /= divisors[i];
  }
  return absl::OkStatus();
}

absl::Status ReadRopes(GgufFields& in, const Family& family, const GgufRopeTensors& tensors,
                       ModelConfig& c) {
  const auto key = [&](std::string_view name) { return Key(family, name); };
  const absl::StatusOr<Kind> kind = ScalingKind(in, family);
  if (!kind.ok()) return kind.status();
  RopeRule rule;
  rule.kind = *kind;
  rule.rotary_dim = in.Int(key("rope.dimension_count"), 2, c.head_dim, c.head_dim);
  rule.theta = in.Number(key("rope.freq_base"), 1.001, 1e15, family.defaults.rope_theta);
  rule.factor = in.Number(key("rope.scaling.factor"), 0, 1e6, 1.0);
  if (rule.factor == 0) rule.factor = 1;  // written for "none"
  rule.max_positions = static_cast<double>(c.max_positions);
  rule.original_positions = static_cast<double>(
      in.Int(key("rope.scaling.original_context_length"), 2, kMaxPositions, c.max_positions));
  rule.beta_fast = in.Number(key("rope.scaling.yarn_beta_fast"), 1e-3, 1e6, rule.beta_fast);
  rule.beta_slow = in.Number(key("rope.scaling.yarn_beta_slow"), 1e-3, 1e6, rule.beta_slow);
  if (rule.rotary_dim % 2 != 0) in.Fail(key("rope.dimension_count"), "must be even");
  // Interleaved rows are put in order head by head: that needs every row of a head to rotate.
  if (family.gguf_interleaved_rope && rule.rotary_dim != c.head_dim) {
    in.Fail(key("rope.dimension_count"), "must be the head size for this architecture");
  }
  if (!in.status().ok()) return in.status();
  if (rule.kind == Kind::kLongRope) {
    absl::Status status = ReadLongFactors(tensors, in.file(), rule);
    if (!status.ok()) return status;
  }
  // llama.cpp multiplies what yarn and longrope derive by this factor.
  const double extra = in.Number(key("rope.scaling.attn_factor"), 1e-3, 1e3, 1.0);
  c.ropes.push_back(MakeRope(rule));
  if (rule.kind == Kind::kYarn) c.ropes[0].attention_scale *= static_cast<float>(extra);
  if (rule.kind == Kind::kLongRope && extra != 1.0) {
    c.ropes[0].attention_scale = static_cast<float>(extra);  // the converter derived it already
  }
  if (family.windows == WindowRule::kPattern) {
    RopeRule local = {.rotary_dim = rule.rotary_dim};
    local.theta = in.Number(key("rope.freq_base_swa"), 1.001, 1e15, 10000.0);
    c.ropes.push_back(MakeRope(local));
  }
  if (!in.status().ok()) return in.status();
  return DivideBy(tensors.freqs, in.file(), c.ropes[0]);
}

// Which layers see only a window: a list of flags, or every layer but each pattern-th.
absl::Status ReadLayers(GgufFields& in, const Family& family, ModelConfig& c) {
  const std::string pattern_key = Key(family, "attention.sliding_window_pattern");
  const int64_t window = in.Int(Key(family, "attention.sliding_window"), 0, kMaxPositions, 0);
  const bool patterned = family.windows == WindowRule::kPattern;
  const bool listed = in.IsList(pattern_key);
  const std::vector<int64_t>* flags = listed ? in.List<int64_t>(pattern_key) : nullptr;
  if (flags != nullptr && static_cast<int64_t>(flags->size()) != c.layers) {
    in.Fail(pattern_key, "must have one flag a layer");
    return in.status();
  }
  const int64_t pattern =
      listed ? 1 : in.Int(pattern_key, 1, kMaxLayers, patterned ? 6 : kMaxLayers + 1);
  for (int64_t i = 0; i < c.layers; ++i) {
    const bool windowed =
        window > 0 && (flags != nullptr ? (*flags)[i] != 0 : (i + 1) % pattern != 0);
    c.layer.push_back(
        {.sliding_window = windowed ? window : 0, .rope = patterned && windowed ? 1 : 0});
  }
  return in.status();
}

// The file's own end tokens, and the one that ends a turn in its chat template.
void ReadTokenIds(GgufFields& in, ModelConfig& c) {
  const auto id = [&](std::string_view key) {
    const int64_t value =
        in.Int(std::string("tokenizer.ggml.") + std::string(key), 0, 0xffffffffLL, -1);
    return value < c.vocab ? static_cast<int32_t>(value) : -1;
  };
  const auto add_eos = [&](int32_t token) {
    if (token < 0) return;
    for (const int32_t known : c.eos) {
      if (known == token) return;
    }
    c.eos.push_back(token);
  };
  c.bos = id("bos_token_id");
  for (const std::string_view key : {"eos_token_id", "eot_token_id", "eom_token_id"})
    add_eos(id(key));
  const std::string chat = in.String("tokenizer.chat_template", "");
  const auto* tokens = in.List<std::string>("tokenizer.ggml.tokens");
  const auto* types = in.List<int64_t>("tokenizer.ggml.token_type");
  if (tokens == nullptr || types == nullptr || types->size() != tokens->size()) return;
  constexpr int64_t kControl = 3;
  for (size_t i = 0; i < tokens->size(); ++i) {
    if ((*types)[i] != kControl) continue;
    for (const std::string_view end : {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"}) {
      const bool ends_turns = (*tokens)[i] == end && chat.find(end) != std::string::npos;
      if (ends_turns) add_eos(static_cast<int32_t>(i));
    }
  }
}

// Gemma 3's 27B model alone scales by the width per head; its file does not say so.
float AttentionScale(const Family& family, const ModelConfig& c) {
  constexpr int64_t kGemma27bLayers = 62;
  const bool by_width = family.name == "gemma3" && c.layers == kGemma27bLayers;
  const int64_t width = by_width ? c.hidden / c.heads : c.head_dim;
  return static_cast<float>(1 / std::sqrt(static_cast<double>(width)));
}

}  // namespace

absl::StatusOr<SourceConfig> ReadGgufConfig(const GgufHeader& header, const GgufRopeTensors& rope,
                                            const std::string& file) {
  GgufFields in(header, file);
  const std::string arch = in.String("general.architecture");
  if (!in.status().ok()) return in.status();
  const Family* family = FindGgufFamily(arch);
  if (family == nullptr) {
    return UnsupportedModel(file, "GGUF architecture " + Quoted(arch) +
                                      " is not supported; these are: " + KnownArchitectures());
  }
  if (in.Int("split.count", 0, 65535, 0) > 1) {
    return UnsupportedFile(file, "is one part of several; merge them first (gguf-split --merge)");
  }
  if (in.Int(Key(*family, "expert_count"), 0, 65535, 0) != 0) {
    return UnsupportedModel(file, "mixtures of experts are not supported");
  }
  SourceConfig source{.family = family, .gguf = true};
  ModelConfig& c = source.model;
  c.family = family->name;
  c.architecture = arch;
  c.norm = family->norm;
  c.gated_mlp = family->gated_mlp;
  c.post_norms = family->post_norms;
  c.qk_norm = family->qk_norm;
  c.position = family->position;
  c.position_offset = family->position_offset;
  c.activation = family->defaults.activation == "silu" ? Activation::kSilu : Activation::kGeluTanh;
  ReadSizes(in, *family, c);
  if (!in.status().ok()) return in.status();

  absl::Status status = ReadLayers(in, *family, c);
  if (status.ok() && c.position == PositionKind::kRope) status = ReadRopes(in, *family, rope, c);
  if (!status.ok()) return status;
  ReadTokenIds(in, c);
  c.logit_softcap =
      static_cast<float>(in.Number(Key(*family, "final_logit_softcapping"), 0, 1e6, 0.0));
  c.attention_softcap =
      static_cast<float>(in.Number(Key(*family, "attn_logit_softcapping"), 0, 1e6, 0.0));
  c.attention_scale = AttentionScale(*family, c);
  if (family->scaled_embedding) c.embedding_scale = std::sqrt(static_cast<float>(c.hidden));
  if (!in.status().ok()) return in.status();
  if (status = CheckModelConfig(c, file); !status.ok()) return status;
  return source;
}

}  // namespace babai
