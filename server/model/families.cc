// Facts per family: the configuration and modelling files that each model's authors published on
// Hugging Face, and ggml's gguf.md with the tensor names of its converters.
#include "server/model/families.h"

namespace babai {
namespace {

using std::string_view;

constexpr Need kNever = Need::kNever, kAlways = Need::kAlways;

// Llama and those that only add to it. Biases differ, hence the parameters.
template <Need kQkvBias, Need kOutBias, Need kMlpBias>
constexpr TensorRow kLlamaRows[] = {
    {"embed", "embed_tokens", "token_embd"},
    {"blocks.*.attn_norm", "layers.*.input_layernorm", "blk.*.attn_norm"},
    {"blocks.*.q", "layers.*.self_attn.q_proj", "blk.*.attn_q", kAlways, kQkvBias, -1, false, true},
    {"blocks.*.k", "layers.*.self_attn.k_proj", "blk.*.attn_k", kAlways, kQkvBias, -1, false, true},
    {"blocks.*.v", "layers.*.self_attn.v_proj", "blk.*.attn_v", kAlways, kQkvBias},
    {"blocks.*.o", "layers.*.self_attn.o_proj", "blk.*.attn_output", kAlways, kOutBias},
    {"blocks.*.mlp_norm", "layers.*.post_attention_layernorm", "blk.*.ffn_norm"},
    {"blocks.*.gate", "layers.*.mlp.gate_proj", "blk.*.ffn_gate", kAlways, kMlpBias},
    {"blocks.*.up", "layers.*.mlp.up_proj", "blk.*.ffn_up", kAlways, kMlpBias},
    {"blocks.*.down", "layers.*.mlp.down_proj", "blk.*.ffn_down", kAlways, kMlpBias},
    {"final_norm", "norm", "output_norm"},
    {"head", "lm_head", "output", Need::kUntied},
};

constexpr TensorRow kQwen3Rows[] = {
    {"embed", "embed_tokens", "token_embd"},
    {"blocks.*.attn_norm", "layers.*.input_layernorm", "blk.*.attn_norm"},
    {"blocks.*.q", "layers.*.self_attn.q_proj", "blk.*.attn_q", kAlways, Need::kAttentionBias, -1,
     false, true},
    {"blocks.*.k", "layers.*.self_attn.k_proj", "blk.*.attn_k", kAlways, Need::kAttentionBias, -1,
     false, true},
    {"blocks.*.v", "layers.*.self_attn.v_proj", "blk.*.attn_v", kAlways, Need::kAttentionBias},
    {"blocks.*.q_norm", "layers.*.self_attn.q_norm", "blk.*.attn_q_norm"},
    {"blocks.*.k_norm", "layers.*.self_attn.k_norm", "blk.*.attn_k_norm"},
    {"blocks.*.o", "layers.*.self_attn.o_proj", "blk.*.attn_output", kAlways, Need::kAttentionBias},
    {"blocks.*.mlp_norm", "layers.*.post_attention_layernorm", "blk.*.ffn_norm"},
    {"blocks.*.gate", "layers.*.mlp.gate_proj", "blk.*.ffn_gate"},
    {"blocks.*.up", "layers.*.mlp.up_proj", "blk.*.ffn_up"},
    {"blocks.*.down", "layers.*.mlp.down_proj", "blk.*.ffn_down"},
    {"final_norm", "norm", "output_norm"},
    {"head", "lm_head", "output", Need::kUntied},
};

// The name post_attention_layernorm means another place than in Llama.
constexpr TensorRow kGemma3Rows[] = {
    {"embed", "embed_tokens", "token_embd"},
    {"blocks.*.attn_norm", "layers.*.input_layernorm", "blk.*.attn_norm"},
    {"blocks.*.q", "layers.*.self_attn.q_proj", "blk.*.attn_q", kAlways, Need::kAttentionBias, -1,
     false, true},
    {"blocks.*.k", "layers.*.self_attn.k_proj", "blk.*.attn_k", kAlways, Need::kAttentionBias, -1,
     false, true},
    {"blocks.*.v", "layers.*.self_attn.v_proj", "blk.*.attn_v", kAlways, Need::kAttentionBias},
    {"blocks.*.q_norm", "layers.*.self_attn.q_norm", "blk.*.attn_q_norm"},
    {"blocks.*.k_norm", "layers.*.self_attn.k_norm", "blk.*.attn_k_norm"},
    {"blocks.*.o", "layers.*.self_attn.o_proj", "blk.*.attn_output", kAlways, Need::kAttentionBias},
    {"blocks.*.post_attn_norm", "layers.*.post_attention_layernorm", "blk.*.post_attention_norm"},
    {"blocks.*.mlp_norm", "layers.*.pre_feedforward_layernorm", "blk.*.ffn_norm"},
    {"blocks.*.gate", "layers.*.mlp.gate_proj", "blk.*.ffn_gate"},
    {"blocks.*.up", "layers.*.mlp.up_proj", "blk.*.ffn_up"},
    {"blocks.*.down", "layers.*.mlp.down_proj", "blk.*.ffn_down"},
    {"blocks.*.post_mlp_norm", "layers.*.post_feedforward_layernorm", "blk.*.post_ffw_norm"},
    {"final_norm", "norm", "output_norm"},
    {"head", "lm_head", "output", Need::kUntied},
};

constexpr TensorRow kGpt2Rows[] = {
    {"embed", "wte", "token_embd"},
    {"embed_positions", "wpe", "position_embd"},
    {"blocks.*.attn_norm", "h.*.ln_1", "blk.*.attn_norm", kAlways, kAlways},
    {"blocks.*.q", "h.*.attn.c_attn", "blk.*.attn_qkv", kAlways, kAlways, 0, true},
    {"blocks.*.k", "h.*.attn.c_attn", "blk.*.attn_qkv", kAlways, kAlways, 1, true},
    {"blocks.*.v", "h.*.attn.c_attn", "blk.*.attn_qkv", kAlways, kAlways, 2, true},
    {"blocks.*.o", "h.*.attn.c_proj", "blk.*.attn_output", kAlways, kAlways, -1, true},
    {"blocks.*.mlp_norm", "h.*.ln_2", "blk.*.ffn_norm", kAlways, kAlways},
    {"blocks.*.up", "h.*.mlp.c_fc", "blk.*.ffn_up", kAlways, kAlways, -1, true},
    {"blocks.*.down", "h.*.mlp.c_proj", "blk.*.ffn_down", kAlways, kAlways, -1, true},
    {"final_norm", "ln_f", "output_norm", kAlways, kAlways},
    {"head", "lm_head", "output", Need::kUntied},
};

constexpr TensorRow kOptRows[] = {
    {"embed", "embed_tokens", ""},
    {"embed_positions", "embed_positions", ""},
    {"blocks.*.attn_norm", "layers.*.self_attn_layer_norm", "", kAlways, kAlways},
    {"blocks.*.q", "layers.*.self_attn.q_proj", "", kAlways, Need::kAttentionBias},
    {"blocks.*.k", "layers.*.self_attn.k_proj", "", kAlways, Need::kAttentionBias},
    {"blocks.*.v", "layers.*.self_attn.v_proj", "", kAlways, Need::kAttentionBias},
    {"blocks.*.o", "layers.*.self_attn.out_proj", "", kAlways, Need::kAttentionBias},
    {"blocks.*.mlp_norm", "layers.*.final_layer_norm", "", kAlways, kAlways},
    {"blocks.*.up", "layers.*.fc1", "", kAlways, Need::kMlpBias},
    {"blocks.*.down", "layers.*.fc2", "", kAlways, Need::kMlpBias},
    {"final_norm", "final_layer_norm", "", kAlways, kAlways},
    {"head", "lm_head", "", Need::kUntied},
};

constexpr string_view kModelPrefixes[] = {"model.", ""};
constexpr string_view kGpt2Prefixes[] = {"transformer.", ""};
constexpr string_view kOptPrefixes[] = {"model.decoder.", "decoder."};
// The last two: the text part of a model that also sees, before and after transformers 4.52.
constexpr string_view kGemma3Prefixes[] = {"model.", "", "language_model.model.",
                                           "model.language_model."};

constexpr string_view kLlamaNames[] = {"LlamaForCausalLM"};
constexpr string_view kMistralNames[] = {"MistralForCausalLM"};
constexpr string_view kQwen2Names[] = {"Qwen2ForCausalLM"};
constexpr string_view kQwen3Names[] = {"Qwen3ForCausalLM"};
constexpr string_view kGemma3Names[] = {"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"};
constexpr string_view kGpt2Names[] = {"GPT2LMHeadModel"};
constexpr string_view kOptNames[] = {"OPTForCausalLM"};

const Family kFamilies[] = {
    {.name = "llama",
     .hf_architectures = kLlamaNames,
     .hf_model_type = "llama",
     .gguf_arch = "llama",
     .hf_prefixes = kModelPrefixes,
     .tensors = kLlamaRows<Need::kAttentionBias, Need::kAttentionBias, Need::kMlpBias>,
     .keys = {.mlp_bias = "mlp_bias"},
     .gguf_interleaved_rope = true},
    {.name = "mistral",  // its GGUF calls itself llama
     .hf_architectures = kMistralNames,
     .hf_model_type = "mistral",
     .hf_prefixes = kModelPrefixes,
     .tensors = kLlamaRows<kNever, kNever, kNever>,
     .keys = {.attention_bias = ""},
     .defaults = {.kv_heads = 8, .positions = 131072},
     .windows = WindowRule::kEveryLayer},
    {.name = "qwen2",
     .hf_architectures = kQwen2Names,
     .hf_model_type = "qwen2",
     .gguf_arch = "qwen2",
     .hf_prefixes = kModelPrefixes,
     .tensors = kLlamaRows<kAlways, kNever, kNever>,
     .keys = {.attention_bias = ""},
     .defaults = {.positions = 32768},
     .windows = WindowRule::kUpperLayers},
    {.name = "qwen3",
     .hf_architectures = kQwen3Names,
     .hf_model_type = "qwen3",
     .gguf_arch = "qwen3",
     .hf_prefixes = kModelPrefixes,
     .tensors = kQwen3Rows,
     .defaults = {.head_dim = 128, .positions = 32768},
     .qk_norm = true,
     .windows = WindowRule::kUpperLayers},
    {.name = "gemma3",
     .hf_architectures = kGemma3Names,
     .hf_model_type = "gemma3_text",
     .gguf_arch = "gemma3",
     .hf_prefixes = kGemma3Prefixes,
     .tensors = kGemma3Rows,
     .keys = {.activation = "hidden_activation",
              .attention_width = "query_pre_attn_scalar",
              .attention_softcap = "attn_logit_softcapping",
              .logit_softcap = "final_logit_softcapping"},
     .defaults = {.vocab = 262208,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_dim = 256,
                  .positions = 131072,
                  .attention_width = 256,
                  .rope_theta = 1e6,
                  .activation = "gelu_pytorch_tanh",
                  .tied = true},
     .post_norms = true,
     .qk_norm = true,
     .windows = WindowRule::kPattern,
     .hf_norm_weight_offset = 1,
     .scaled_embedding = true},
    {.name = "gpt2",
     .hf_architectures = kGpt2Names,
     .hf_model_type = "gpt2",
     .gguf_arch = "gpt2",
     .hf_prefixes = kGpt2Prefixes,
     .tensors = kGpt2Rows,
     .keys = {.hidden = "n_embd",
              .intermediate = "n_inner",
              .layers = "n_layer",
              .heads = "n_head",
              .kv_heads = "",
              .head_dim = "",
              .positions = "n_positions",
              .norm_eps = "layer_norm_epsilon",
              .activation = "activation_function",
              .attention_bias = ""},
     .defaults = {.positions = 1024,
                  .intermediate_per_hidden = 4,
                  .norm_eps = 1e-5,
                  .activation = "gelu_new",
                  .tied = true},
     .norm = NormKind::kLayer,
     .gated_mlp = false,
     .position = PositionKind::kLearned},
    {.name = "opt",
     .hf_architectures = kOptNames,
     .hf_model_type = "opt",
     .hf_prefixes = kOptPrefixes,
     .tensors = kOptRows,
     .keys = {.intermediate = "ffn_dim",
              .kv_heads = "",
              .head_dim = "",
              .norm_eps = "",
              .activation = "activation_function",
              .attention_bias = "enable_bias",
              .mlp_bias = "enable_bias"},
     .defaults = {.norm_eps = 1e-5, .activation = "relu", .tied = true, .linear_bias = true},
     .norm = NormKind::kLayer,
     .gated_mlp = false,
     .position = PositionKind::kLearned,
     .position_offset = 2},
};

}  // namespace

absl::Span<const Family> Families() { return kFamilies; }

const Family* FindHfFamily(string_view architecture) {
  for (const Family& family : kFamilies) {
    for (const string_view name : family.hf_architectures) {
      if (name == architecture) return &family;
    }
  }
  return nullptr;
}

const Family* FindHfFamilyByModelType(string_view model_type) {
  for (const Family& family : kFamilies) {
    if (family.hf_model_type == model_type) return &family;
  }
  return nullptr;
}

const Family* FindGgufFamily(string_view arch) {
  for (const Family& family : kFamilies) {
    if (!arch.empty() && family.gguf_arch == arch) return &family;
  }
  return nullptr;
}

}  // namespace babai
