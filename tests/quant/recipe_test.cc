#include "server/quant/recipe.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/reason/reason.h"

namespace babai {
namespace {

TEST(RecipeTest, PresetsAreValidAndNamed) {
  EXPECT_EQ(PresetNames(), (std::vector<std::string>{"dense", "rtn", "gptq", "babai"}));
  for (const std::string& name : PresetNames()) {
    const auto recipe = PresetRecipe(name);
    ASSERT_TRUE(recipe.ok());
    EXPECT_EQ(recipe->preset, name);
    EXPECT_TRUE(ValidateRecipe(*recipe).ok());
  }
  const auto unknown = PresetRecipe("best");
  EXPECT_EQ(FieldOf(unknown.status()), "recipe.preset");
  EXPECT_NE(unknown.status().message().find("babai"), absl::string_view::npos);
}

TEST(RecipeTest, JsonIsCanonical) {
  EXPECT_EQ(
      RecipeToJson(*PresetRecipe("gptq")),
      R"({"preset":"gptq","solver":"babai","order":"activation","scale_fit":"absmax","bits":4,)"
      R"("group_size":0,"symmetric":false,"damping":0.01,"embedding_bits":8,"dense_type":"source"})");
  for (const std::string& name : PresetNames()) {
    const std::string json = RecipeToJson(*PresetRecipe(name));
    EXPECT_EQ(RecipeToJson(*RecipeFromJson(json)), json);
  }
}

TEST(RecipeTest, EveryFieldSurvivesJson) {
  const char* json =
      R"({"preset":"babai","solver":"nearest","order":"min-pivot","scale_fit":"mse","bits":3,)"
      R"("group_size":-1,"symmetric":true,"damping":0.1,"embedding_bits":16,"dense_type":"bf16"})";
  const auto recipe = RecipeFromJson(json);
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->solver, Solver::kNearest);
  EXPECT_EQ(recipe->order, Order::kMinPivot);
  EXPECT_EQ(recipe->scale_fit, ScaleFit::kMse);
  EXPECT_EQ(recipe->bits, 3);
  EXPECT_EQ(recipe->group_size, -1);
  EXPECT_TRUE(recipe->symmetric);
  EXPECT_EQ(recipe->damping, 0.1);
  EXPECT_EQ(recipe->embedding_bits, 16);
  EXPECT_EQ(recipe->dense_type, DenseType::kBF16);
  EXPECT_EQ(RecipeToJson(*recipe), json);
}

TEST(RecipeTest, MissingFieldsAreThePresets) {
  EXPECT_EQ(RecipeToJson(*RecipeFromJson(R"({"preset":"rtn"})")),
            RecipeToJson(*PresetRecipe("rtn")));
  EXPECT_EQ(RecipeToJson(*RecipeFromJson("{}")), RecipeToJson(*PresetRecipe("babai")));
  // The preset holds wherever it stands.
  EXPECT_EQ(RecipeFromJson(R"({"bits":3,"preset":"gptq"})")->bits, 3);
}

struct BadJson {
  const char* json;
  const char* field;
};

class BadRecipeTest : public testing::TestWithParam<BadJson> {};

TEST_P(BadRecipeTest, IsRefusedByField) {
  const auto recipe = RecipeFromJson(GetParam().json);
  EXPECT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument) << GetParam().json;
  EXPECT_EQ(FieldOf(recipe.status()), GetParam().field);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadRecipeTest,
    testing::Values(
        BadJson{"", "recipe"}, BadJson{"[]", "recipe"}, BadJson{"{", "recipe"},
        BadJson{"4", "recipe"}, BadJson{R"({"bit":4})", "recipe.bit"},
        BadJson{R"({"preset":"best"})", "recipe.preset"},
        BadJson{R"({"preset":3})", "recipe.preset"},
        BadJson{R"({"solver":"gptq"})", "recipe.solver"}, BadJson{R"({"order":1})", "recipe.order"},
        BadJson{R"({"scale_fit":""})", "recipe.scale_fit"}, BadJson{R"({"bits":1})", "recipe.bits"},
        BadJson{R"({"bits":9})", "recipe.bits"}, BadJson{R"({"bits":4.0})", "recipe.bits"},
        BadJson{R"({"bits":"4"})", "recipe.bits"}, BadJson{R"({"bits":4294967300})", "recipe.bits"},
        BadJson{R"({"bits":18446744073709551620})", "recipe.bits"},
        BadJson{R"({"group_size":18446744073709551615})", "recipe.group_size"},
        BadJson{R"({"group_size":48})", "recipe.group_size"},
        BadJson{R"({"group_size":-2})", "recipe.group_size"},
        BadJson{R"({"symmetric":1})", "recipe.symmetric"},
        BadJson{R"({"damping":-0.1})", "recipe.damping"},
        BadJson{R"({"damping":1.5})", "recipe.damping"},
        BadJson{R"({"damping":null})", "recipe.damping"},
        BadJson{R"({"embedding_bits":4})", "recipe.embedding_bits"},
        BadJson{R"({"dense_type":"f64"})", "recipe.dense_type"}));

TEST(RecipeTest, DampingMustBeANumber) {
  Recipe recipe = *PresetRecipe("babai");
  recipe.damping = std::nan("");
  EXPECT_EQ(FieldOf(ValidateRecipe(recipe)), "recipe.damping");
}

TEST(RecipeTest, GroupIsTheLargestThatDivides) {
  Recipe recipe = *PresetRecipe("babai");
  EXPECT_EQ(*GroupFor(recipe, 4096), 128);
  EXPECT_EQ(*GroupFor(recipe, 576), 64);
  EXPECT_EQ(*GroupFor(recipe, 96), 32);
  EXPECT_EQ(*GroupFor(recipe, 172), 172);  // none divides: one group a row
  recipe.group_size = -1;
  EXPECT_EQ(*GroupFor(recipe, 576), 576);
  recipe.group_size = 128;
  EXPECT_EQ(*GroupFor(recipe, 1536), 128);
  EXPECT_EQ(FieldOf(GroupFor(recipe, 576).status()), "recipe.group_size");
}

}  // namespace
}  // namespace babai
