#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "server/model/source_config.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

Json Llama(const Json& changes = Json::object()) {
  Json json = {{"architectures", {"LlamaForCausalLM"}},
               {"model_type", "llama"},
               {"vocab_size", 1000},
               {"hidden_size", 64},
               {"intermediate_size", 128},
               {"num_hidden_layers", 4},
               {"num_attention_heads", 4}};
  json.update(changes);
  return json;
}

Json Family(const char* architecture, const Json& changes = Json::object()) {
  Json json = Llama({{"architectures", {architecture}}});
  json.update(changes);
  return json;
}

ModelConfig Read(const Json& json, const Json& generation = Json()) {
  const auto source = ReadHfConfig(json, generation);
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? source->model : ModelConfig();
}

std::vector<int64_t> Windows(const ModelConfig& config) {
  std::vector<int64_t> windows;
  for (const LayerConfig& layer : config.layer) windows.push_back(layer.sliding_window);
  return windows;
}

TEST(HfConfig, LlamaDefaults) {
  const ModelConfig c = Read(Llama());
  EXPECT_EQ(c.family, "llama");
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.max_positions, 2048);
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-6f);
  EXPECT_FLOAT_EQ(c.attention_scale, 0.25f);
  EXPECT_FALSE(c.tied_embedding);
  EXPECT_EQ(c.ropes.size(), 1u);
  EXPECT_THAT(Windows(c), ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(c.bos, -1);
}

TEST(HfConfig, CodeAndStrangersAreIgnored) {
  const Json strange = {{"auto_map", {{"AutoModel", "evil.py"}}}, {"pretraining_tp", 8}};
  EXPECT_EQ(ModelConfigToJson(Read(Llama(strange))), ModelConfigToJson(Read(Llama())));
}

TEST(HfConfig, BothRopeSpellingsMeanTheSame) {
  const Json factors = {{"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 512}};
  Json old_form = factors, older_form = factors, new_form = factors;
  old_form["rope_type"] = "llama3";
  older_form["type"] = "llama3";
  new_form["rope_type"] = "llama3";
  new_form["rope_theta"] = 500000;
  const ModelConfig a = Read(Llama({{"rope_theta", 500000}, {"rope_scaling", old_form}}));
  const ModelConfig b = Read(Llama({{"rope_theta", 500000}, {"rope_scaling", older_form}}));
  const ModelConfig c = Read(Llama({{"rope_parameters", new_form}}));
  EXPECT_EQ(a.ropes[0].inv_freq, b.ropes[0].inv_freq);
  EXPECT_EQ(a.ropes[0].inv_freq, c.ropes[0].inv_freq);
  EXPECT_NE(a.ropes[0].inv_freq, Read(Llama({{"rope_theta", 500000}})).ropes[0].inv_freq);
}

TEST(HfConfig, PartialRotation) {
  EXPECT_EQ(Read(Llama({{"partial_rotary_factor", 0.5}})).ropes[0].inv_freq.size(), 4u);
  EXPECT_FALSE(ReadHfConfig(Llama({{"partial_rotary_factor", 0.4}, {"head_dim", 8}}), Json()).ok());
}

TEST(HfConfig, SlidingWindows) {
  EXPECT_THAT(Windows(Read(Family("MistralForCausalLM",
                                  {{"num_key_value_heads", 2}, {"sliding_window", 7}}))),
              ElementsAre(7, 7, 7, 7));
  EXPECT_THAT(Windows(Read(Family("MistralForCausalLM",
                                  {{"num_key_value_heads", 2}, {"sliding_window", nullptr}}))),
              ElementsAre(0, 0, 0, 0));
  // Qwen writes a window that is not used.
  const Json window = {{"sliding_window", 7}, {"max_window_layers", 3}};
  EXPECT_THAT(Windows(Read(Family("Qwen2ForCausalLM", window))), ElementsAre(0, 0, 0, 0));
  Json used = window;
  used["use_sliding_window"] = true;
  EXPECT_THAT(Windows(Read(Family("Qwen2ForCausalLM", used))), ElementsAre(0, 0, 0, 7));
  used["layer_types"] = {"full_attention", "sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(Windows(Read(Family("Qwen2ForCausalLM", used))), ElementsAre(0, 7, 0, 0));
  // Llama has no such field: a stray one means nothing.
  EXPECT_THAT(Windows(Read(Llama({{"sliding_window", 7}}))), ElementsAre(0, 0, 0, 0));
}

Json Gemma(const Json& changes = Json::object()) {
  Json json = {{"architectures", {"Gemma3ForCausalLM"}},
               {"hidden_size", 64},
               {"intermediate_size", 128},
               {"num_hidden_layers", 7},
               {"sliding_window", 512}};
  json.update(changes);
  return json;
}

TEST(HfConfig, GemmaFillsInItsOwnDefaults) {
  const ModelConfig c = Read(Gemma());
  EXPECT_EQ(c.vocab, 262208);
  EXPECT_EQ(c.heads, 8);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 256);
  EXPECT_EQ(c.activation, Activation::kGeluTanh);
  EXPECT_EQ(c.norm_weight_offset, 1);
  EXPECT_EQ(c.embedding_scale, 8);
  EXPECT_FLOAT_EQ(c.attention_scale, 1 / 16.0f);
  EXPECT_TRUE(c.tied_embedding && c.post_norms && c.qk_norm);
  EXPECT_THAT(Windows(c), ElementsAre(512, 512, 512, 512, 512, 0, 512));
  EXPECT_EQ(c.layer[5].rope, 0);
  EXPECT_EQ(c.layer[6].rope, 1);
  EXPECT_FLOAT_EQ(c.ropes[0].inv_freq[64], 1e-3f);  // 1e6^(-1/2)
  EXPECT_FLOAT_EQ(c.ropes[1].inv_freq[64], 1e-2f);  // 1e4^(-1/2)
}

TEST(HfConfig, GemmaScalesOnlyTheGlobalRope) {
  const ModelConfig plain = Read(Gemma());
  const ModelConfig scaled =
      Read(Gemma({{"rope_scaling", {{"rope_type", "linear"}, {"factor", 8}}}}));
  EXPECT_FLOAT_EQ(scaled.ropes[0].inv_freq[3] * 8, plain.ropes[0].inv_freq[3]);
  EXPECT_EQ(scaled.ropes[1].inv_freq, plain.ropes[1].inv_freq);
  const ModelConfig nested = Read(
      Gemma({{"rope_parameters",
              {{"full_attention", {{"rope_type", "linear"}, {"factor", 8}, {"rope_theta", 1e6}}},
               {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}}}}));
  EXPECT_EQ(nested.ropes[0].inv_freq, scaled.ropes[0].inv_freq);
  EXPECT_EQ(nested.ropes[1].inv_freq, scaled.ropes[1].inv_freq);
}

TEST(HfConfig, GemmaThatSeesKeepsItsTextApart) {
  Json text = Gemma({{"eos_token_id", 1}});
  text.erase("architectures");
  const ModelConfig c = Read({{"architectures", {"Gemma3ForConditionalGeneration"}},
                              {"text_config", text},
                              {"torch_dtype", "bfloat16"},
                              {"eos_token_id", {1, 106}}});
  EXPECT_EQ(c.layers, 7);
  EXPECT_THAT(c.eos, ElementsAre(1, 106));
}

TEST(HfConfig, EmbeddingScaleIsRoundedToTheModelsType) {
  EXPECT_FLOAT_EQ(Read(Gemma({{"hidden_size", 1152}})).embedding_scale, std::sqrt(1152.0f));
  EXPECT_EQ(Read(Gemma({{"hidden_size", 1152}, {"torch_dtype", "bfloat16"}})).embedding_scale, 34);
  EXPECT_EQ(Read(Gemma({{"hidden_size", 1152}, {"dtype", "bfloat16"}})).embedding_scale, 34);
}

TEST(HfConfig, TokenIdsFromBothFiles) {
  const ModelConfig c =
      Read(Llama({{"eos_token_id", 2}, {"bos_token_id", 1}}), {{"eos_token_id", {5, 2, 5}}});
  EXPECT_THAT(c.eos, ElementsAre(5, 2));
  EXPECT_EQ(c.bos, 1);
  // A default left from a larger vocabulary can never be produced.
  EXPECT_THAT(Read(Llama({{"eos_token_id", 50256}})).eos, testing::IsEmpty());
}

TEST(HfConfig, Gpt2AndOpt) {
  const ModelConfig gpt2 = Read({{"architectures", {"GPT2LMHeadModel"}},
                                 {"vocab_size", 100},
                                 {"n_embd", 64},
                                 {"n_layer", 2},
                                 {"n_head", 4},
                                 {"n_inner", nullptr}});
  EXPECT_EQ(gpt2.intermediate, 256);
  EXPECT_EQ(gpt2.max_positions, 1024);
  EXPECT_EQ(gpt2.activation, Activation::kGeluTanh);
  EXPECT_EQ(gpt2.norm, NormKind::kLayer);
  EXPECT_FALSE(gpt2.gated_mlp);
  EXPECT_TRUE(gpt2.tied_embedding);
  EXPECT_TRUE(gpt2.ropes.empty());
  const ModelConfig opt = Read(Family("OPTForCausalLM", {{"ffn_dim", 96}}));
  EXPECT_EQ(opt.intermediate, 96);
  EXPECT_EQ(opt.position_offset, 2);
  EXPECT_EQ(opt.activation, Activation::kRelu);
  EXPECT_FLOAT_EQ(opt.norm_eps, 1e-5f);
}

TEST(HfConfig, RefusesOtherMathematics) {
  const Json opt = {{"ffn_dim", 96}};
  const auto with = [](Json json, const Json& more) {
    json.update(more);
    return json;
  };
  const std::pair<Json, const char*> cases[] = {
      {Family("MambaForCausalLM"), "MambaForCausalLM"},
      {Family("MixtralForCausalLM"), "not supported"},
      {Family("OPTForCausalLM", with(opt, {{"do_layer_norm_before", false}})), "post-norm"},
      {Family("OPTForCausalLM", with(opt, {{"word_embed_proj_dim", 32}})), "word_embed_proj_dim"},
      {{{"architectures", {"GPT2LMHeadModel"}},
        {"vocab_size", 9},
        {"n_embd", 64},
        {"n_layer", 2},
        {"n_head", 4},
        {"scale_attn_by_inverse_layer_idx", true}},
       "scale_attn_by_inverse_layer_idx"},
      {Gemma({{"use_bidirectional_attention", true}}), "encoder"},
      {Llama({{"hidden_act", "mish"}}), "mish"},
      {Llama({{"rope_scaling", {{"rope_type", "mrope"}}}}), "mrope"},
  };
  for (const auto& [json, message] : cases) {
    const auto source = ReadHfConfig(json, Json());
    ASSERT_FALSE(source.ok()) << message;
    EXPECT_EQ(ReasonOf(source.status()), reason::kUnsupportedArchitecture) << source.status();
    EXPECT_THAT(std::string(source.status().message()), HasSubstr(message));
  }
  const auto quantized = ReadHfConfig(Llama({{"quantization_config", {{"bits", 4}}}}), Json());
  EXPECT_EQ(ReasonOf(quantized.status()), reason::kUnsupportedFormat);
}

TEST(HfConfig, RefusesValuesOutOfRange) {
  const std::pair<const char*, Json> changes[] = {
      {"vocab_size", 0},
      {"vocab_size", nullptr},
      {"vocab_size", (1 << 20) + 1},
      {"vocab_size", "9"},
      {"hidden_size", 65537},
      {"hidden_size", -64},
      {"hidden_size", 64.5},
      {"hidden_size", uint64_t{1} << 63},
      {"num_hidden_layers", 0},
      {"num_hidden_layers", 513},
      {"num_attention_heads", 0},
      {"num_attention_heads", 5},
      {"num_key_value_heads", 3},
      {"num_key_value_heads", 8},
      {"head_dim", 0},
      {"head_dim", 1025},
      {"head_dim", 15},
      {"intermediate_size", 0},
      {"max_position_embeddings", 1 << 25},
      {"rms_norm_eps", 0},
      {"rms_norm_eps", -1},
      {"rope_theta", 1},
      {"rope_theta", 1e300},
      {"rope_scaling", "linear"},
      {"rope_scaling", {{"rope_type", "linear"}}},
      {"rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}},
      {"rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1}}, {"long_factor", {1}}}},
      {"rope_scaling",
       {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}},
      {"eos_token_id", "2"},
      {"eos_token_id", {1, "2"}},
      {"tie_word_embeddings", 1},
      {"architectures", "LlamaForCausalLM"},
      {"architectures", {"LlamaForCausalLM", "Other"}},
      {"model_type", 7},
  };
  for (const auto& [key, value] : changes) {
    const auto source = ReadHfConfig(Llama({{key, value}}), Json());
    ASSERT_FALSE(source.ok()) << key << " = " << value;
    EXPECT_EQ(ReasonOf(source.status()), reason::kInvalidModelFile) << source.status();
    EXPECT_THAT(FieldOf(source.status()), HasSubstr("config.json")) << key;
  }
}

}  // namespace
}  // namespace babai
