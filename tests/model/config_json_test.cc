#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "server/model/config.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::json;

ModelConfig Config() {
  ModelConfig c;
  c.family = "gemma3";
  c.architecture = "Gemma3ForCausalLM";
  c.vocab = 1000, c.hidden = 48, c.intermediate = 100, c.layers = 2;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 16, c.max_positions = 512;
  c.norm = NormKind::kLayer;
  c.norm_eps = 1e-6f, c.norm_weight_offset = 1;
  c.post_norms = c.qk_norm = c.tied_embedding = c.add_bos = true;
  c.activation = Activation::kGeluErf;
  c.gated_mlp = false;
  c.position_offset = 2;
  c.ropes = {{{1.0f, 0.1f, 1.0f / 3}, 1.25f}, {{0.7f}, 1.0f}};
  c.layer = {{64, 1}, {0, 0}};
  c.attention_scale = 1.0f / 7, c.attention_softcap = 50, c.logit_softcap = 30;
  c.embedding_scale = 6.9282032f;
  c.bos = 2;
  c.eos = {1, 106};
  return c;
}

// Text equality covers every field: both directions share one list, and floats are kept to the bit.
TEST(ModelConfigJson, ComesBackExactly) {
  const std::string text = ModelConfigToJson(Config());
  const auto config = ModelConfigFromJson(text);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(ModelConfigToJson(*config), text);
  EXPECT_EQ(config->attention_scale, 1.0f / 7);
  EXPECT_EQ(config->ropes[0].inv_freq[2], 1.0f / 3);
  EXPECT_EQ(config->activation, Activation::kGeluErf);
  EXPECT_EQ(config->eos, (std::vector<int32_t>{1, 106}));
}

TEST(ModelConfigJson, RefusesWhatTheEngineCanNotUse) {
  const std::pair<const char*, std::function<void(Json&)>> changes[] = {
      {"no vocab", [](Json& j) { j.erase("vocab"); }},
      {"null layers", [](Json& j) { j["layers"] = nullptr; }},
      {"layers 0", [](Json& j) { j["layers"] = 0; }},
      {"layers 513", [](Json& j) { j["layers"] = 513; }},
      {"layers in disagreement", [](Json& j) { j["layers"] = 3; }},
      {"hidden 65537", [](Json& j) { j["hidden"] = 65537; }},
      {"hidden text", [](Json& j) { j["hidden"] = "48"; }},
      {"vocab above 2^20", [](Json& j) { j["vocab"] = (1 << 20) + 1; }},
      {"negative vocab", [](Json& j) { j["vocab"] = -1; }},
      {"kv heads do not divide", [](Json& j) { j["kv_heads"] = 3; }},
      {"more kv heads than heads", [](Json& j) { j["kv_heads"] = 8; }},
      {"unknown activation", [](Json& j) { j["activation"] = "mish"; }},
      {"eps 0", [](Json& j) { j["norm_eps"] = 0; }},
      {"scale 0", [](Json& j) { j["attention_scale"] = 0; }},
      {"scale 1e300", [](Json& j) { j["attention_scale"] = 1e300; }},
      {"rope wider than a head",
       [](Json& j) { j["ropes"][0]["inv_freq"] = Json(std::vector<int>(9)); }},
      {"empty rope", [](Json& j) { j["ropes"][0]["inv_freq"] = Json::array(); }},
      {"negative frequency", [](Json& j) { j["ropes"][0]["inv_freq"][0] = -1; }},
      {"rope no object", [](Json& j) { j["ropes"][0] = 1; }},
      {"ropes no list", [](Json& j) { j["ropes"] = 1; }},
      {"layer without rope", [](Json& j) { j["layer"][0]["rope"] = 2; }},
      {"negative window", [](Json& j) { j["layer"][0]["sliding_window"] = -1; }},
      {"eos outside", [](Json& j) { j["eos"] = {1000}; }},
      {"bos outside", [](Json& j) { j["bos"] = 1000; }},
  };
  for (const auto& [name, change] : changes) {
    Json json = Json::parse(ModelConfigToJson(Config()));
    change(json);
    const auto config = ModelConfigFromJson(json.dump());
    ASSERT_FALSE(config.ok()) << name;
    EXPECT_EQ(ReasonOf(config.status()), reason::kInvalidModelFile) << name;
  }
  EXPECT_FALSE(ModelConfigFromJson("").ok());
  EXPECT_FALSE(ModelConfigFromJson("[]").ok());
  EXPECT_FALSE(ModelConfigFromJson("{").ok());
}

}  // namespace
}  // namespace babai
