#include "server/quant/recipe.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/reason/reason.h"

namespace babai {
namespace {

TEST(RecipeTest, PresetsAreValidAndNamed) {
  EXPECT_EQ(PresetNames(),
            (std::vector<std::string>{"dense", "rtn", "gptq", "babai", "ssqr", "hptq", "gptqt",
                                      "coreq", "k-coreq", "watersic", "quip", "squeezellm", "pot",
                                      "nf4", "mixed", "best"}));
  for (const std::string& name : PresetNames()) {
    const auto recipe = PresetRecipe(name);
    ASSERT_TRUE(recipe.ok());
    EXPECT_EQ(recipe->preset, name);
    EXPECT_TRUE(ValidateRecipe(*recipe).ok());
  }
  const auto unknown = PresetRecipe("finest");
  EXPECT_EQ(FieldOf(unknown.status()), "recipe.preset");
  EXPECT_NE(unknown.status().message().find("babai"), absl::string_view::npos);
}

TEST(RecipeTest, JsonIsCanonical) {
  EXPECT_EQ(
      RecipeToJson(*PresetRecipe("gptq")),
      R"({"preset":"gptq","solver":"babai","beam":1,"descent_passes":0,"order":"activation",)"
      R"("grid":"uniform","scale_fit":"abs-max","bits":4,"intermediate_bits":5,"group_size":0,)"
      R"("symmetric":false,"damping":0.01,"target_bits":0.0,"target_bytes":0,"allocation":"equal",)"
      R"("rate_weight":0.0,"outlier_rule":"none","outliers":0.0,"rotation":"none","target":"none",)"
      R"("alpha":1.0,"residual":false,"rescale":"none","norm_tweak":false,"embedding_bits":8,)"
      R"("dense_type":"source"})");
  for (const std::string& name : PresetNames()) {
    const std::string json = RecipeToJson(*PresetRecipe(name));
    EXPECT_EQ(RecipeToJson(*RecipeFromJson(json)), json);
  }
}

TEST(RecipeTest, EveryFieldSurvivesJson) {
  const char* json =
      R"({"preset":"babai","solver":"k-best","beam":4,"descent_passes":2,"order":"min-pivot",)"
      R"("grid":"column-integer","scale_fit":"mse","bits":3,"intermediate_bits":6,"group_size":-1,)"
      R"("symmetric":true,"damping":0.1,"target_bits":2.5,"target_bytes":0,"allocation":"hulls",)"
      R"("rate_weight":0.5,"outlier_rule":"none","outliers":0.0,"rotation":"both",)"
      R"("target":"fixed","alpha":0.25,"residual":true,"rescale":"rows","norm_tweak":true,)"
      R"("embedding_bits":16,"dense_type":"bf16"})";
  const auto recipe = RecipeFromJson(json);
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->solver, Solver::kKBest);
  EXPECT_EQ(recipe->beam, 4);
  EXPECT_EQ(recipe->order, Order::kMinPivot);
  EXPECT_EQ(recipe->grid, GridKind::kColumnInteger);
  EXPECT_EQ(recipe->scale_fit, ScaleFit::kMse);
  EXPECT_EQ(recipe->bits, 3);
  EXPECT_EQ(recipe->group_size, -1);
  EXPECT_TRUE(recipe->symmetric);
  EXPECT_EQ(recipe->damping, 0.1);
  EXPECT_EQ(recipe->target_bits, 2.5);
  EXPECT_EQ(recipe->allocation, Allocation::kHulls);
  EXPECT_EQ(recipe->rotation, RotationKind::kBoth);
  EXPECT_EQ(recipe->target, Target::kFixed);
  EXPECT_EQ(recipe->rescale, Rescale::kRows);
  EXPECT_EQ(recipe->embedding_bits, 16);
  EXPECT_EQ(recipe->dense_type, DenseType::kBF16);
  EXPECT_EQ(RecipeToJson(*recipe), json);
}

// What people ask of a preset with a target.
TEST(RecipeTest, BitsStandForATarget) {
  EXPECT_EQ(RecipeFromJson(R"({"preset":"hptq","bits":3})")->target_bits, 3.125);
  EXPECT_EQ(RecipeFromJson(R"({"preset":"mixed","bits":3})")->target_bits, 3.25);
  EXPECT_EQ(RecipeFromJson(R"({"preset":"hptq","bits":3,"target_bits":2.5})")->target_bits, 2.5);
  const auto sized = RecipeFromJson(R"({"preset":"best","target_bytes":50000000})");
  EXPECT_EQ(sized->target_bits, 0);
  EXPECT_EQ(sized->target_bytes, 50000000);
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
        BadJson{R"({"preset":"finest"})", "recipe.preset"},
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
        BadJson{R"({"embedding_bits":5})", "recipe.embedding_bits"},
        BadJson{R"({"grid":"int"})", "recipe.grid"},
        BadJson{R"({"grid":"odd","bits":8})", "recipe.bits"},
        BadJson{R"({"grid":"float4","bits":3})", "recipe.bits"},
        BadJson{R"({"grid":"binary-coding","intermediate_bits":7})", "recipe.intermediate_bits"},
        BadJson{R"({"grid":"integer"})", "recipe.target_bits"},
        BadJson{R"({"preset":"watersic","solver":"nearest"})", "recipe.grid"},
        BadJson{R"({"target_bits":4})", "recipe.allocation"},
        BadJson{R"({"preset":"hptq","target_bits":0.5})", "recipe.target_bits"},
        BadJson{R"({"preset":"hptq","target_bits":3,"target_bytes":9})", "recipe.target_bytes"},
        BadJson{R"({"allocation":"hulls"})", "recipe.target_bits"},
        BadJson{R"({"preset":"nf4","allocation":"hulls","target_bits":3})", "recipe.allocation"},
        BadJson{R"({"outliers":0.01})", "recipe.outliers"},
        BadJson{R"({"outlier_rule":"overflow","outliers":0.2})", "recipe.outliers"},
        BadJson{R"({"preset":"nf4","outlier_rule":"overflow","outliers":0.01})",
                "recipe.outlier_rule"},
        BadJson{R"({"beam":4})", "recipe.beam"}, BadJson{R"({"beam":17})", "recipe.beam"},
        BadJson{R"({"descent_passes":9})", "recipe.descent_passes"},
        BadJson{R"({"preset":"rtn","target":"closed-form"})", "recipe.solver"},
        BadJson{R"({"residual":true})", "recipe.residual"},
        BadJson{R"({"alpha":3})", "recipe.alpha"},
        BadJson{R"({"rate_weight":-1})", "recipe.rate_weight"},
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
