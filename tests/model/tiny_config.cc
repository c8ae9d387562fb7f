#include <map>

#include "tests/model/tiny_model.h"

namespace babai {

bool IsOneOf(const std::string& family, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (family == name) return true;
  }
  return false;
}

bool HasLayerNorm(const TinyModel& m) { return IsOneOf(m.family, {"gpt2", "opt"}); }
bool IsTied(const TinyModel& m) { return m.tied || IsOneOf(m.family, {"gpt2", "opt", "gemma3"}); }
int64_t KvHeads(const TinyModel& m) { return HasLayerNorm(m) ? m.heads : m.kv_heads; }

int64_t HeadDim(const TinyModel& m) {
  if (m.head_dim != 0) return m.head_dim;
  return IsOneOf(m.family, {"mistral", "qwen3", "gemma3"}) ? 32 : m.hidden / m.heads;
}

Json ConfigJson(const TinyModel& m) {
  const std::map<std::string, const char*> classes = {
      {"llama", "LlamaForCausalLM"},   {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},   {"qwen3", "Qwen3ForCausalLM"},
      {"gemma3", "Gemma3ForCausalLM"}, {"gpt2", "GPT2LMHeadModel"},
      {"opt", "OPTForCausalLM"}};
  const char* dtypes[] = {"float32", "float16", "bfloat16"};
  Json json = {{"architectures", {classes.at(m.family)}},
               {"model_type", m.family == "gemma3" ? "gemma3_text" : m.family},
               {"vocab_size", m.vocab},
               {"bos_token_id", 0},
               {"eos_token_id", 0},
               {"pad_token_id", 0},
               {"tie_word_embeddings", IsTied(m)},
               {"torch_dtype", dtypes[static_cast<int>(m.dtype)]}};
  if (m.family == "gpt2") {
    json.update({{"n_embd", m.hidden},
                 {"n_inner", m.intermediate},
                 {"n_layer", m.layers},
                 {"n_head", m.heads},
                 {"n_positions", m.max_positions}});
    return json;
  }
  json.update({{"hidden_size", m.hidden},
               {"num_hidden_layers", m.layers},
               {"num_attention_heads", m.heads},
               {"max_position_embeddings", m.max_positions}});
  if (m.family == "opt") {
    json.update({{"ffn_dim", m.intermediate},
                 {"word_embed_proj_dim", m.hidden},
                 {"do_layer_norm_before", true},
                 {"activation_function", "relu"}});
    return json;
  }
  json.update({{"intermediate_size", m.intermediate},
               {"num_key_value_heads", m.kv_heads},
               {"head_dim", HeadDim(m)},
               {"rms_norm_eps", 1e-5},
               {"rope_theta", 10000.0}});
  if (m.family != "gemma3") json["hidden_act"] = "silu";
  if (m.attention_bias) json["attention_bias"] = true;
  if (m.family == "mistral") json["sliding_window"] = 64;
  if (m.family == "gemma3") {
    json.update({{"hidden_activation", "gelu_pytorch_tanh"},
                 {"rope_local_base_freq", 1000.0},
                 {"query_pre_attn_scalar", HeadDim(m)},
                 {"sliding_window", 16},
                 {"sliding_window_pattern", 2}});
  }
  return json;
}

}  // namespace babai
