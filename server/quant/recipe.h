// A recipe: how a model is to be quantized, as a value. Presets are values with a name; every
// method is a combination of stages (transform, target, metric, grid, solver, ...), not a class.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

enum class Order { kNatural, kActivation, kMinPivot };  // order of columns in the sweep
enum class Solver { kDense, kNearest, kBabai };         // kDense: keep the weights unquantized
enum class ScaleFit { kAbsMax, kMse, kLossWeighted };   // how a group's scale is found
enum class DenseType { kSource, kF32, kF16, kBF16 };    // storage of unquantized tensors

struct Recipe {
  std::string preset = "babai";  // the name it came from; part of the report only
  Solver solver = Solver::kBabai;
  Order order = Order::kActivation;
  ScaleFit scale_fit = ScaleFit::kLossWeighted;
  int bits = 4;  // 2, 3, 4 or 8
  int64_t group_size =
      0;  // 32, 64, 128; -1 = one group a row; 0 = largest of 128, 64, 32 that divides k
  bool symmetric = false;
  double damping = 0.01;   // times mean diag(H); doubled up to 6 times if the factor fails
  int embedding_bits = 8;  // embedding and head together: 16 (dense_type) or 8 (F1, group 32)
  DenseType dense_type = DenseType::kSource;
};

// "dense", "rtn", "gptq", "babai". InvalidArgument: unknown preset (the message lists them).
absl::StatusOr<Recipe> PresetRecipe(std::string_view name);
std::vector<std::string> PresetNames();

// InvalidArgument naming the field ("recipe.bits") and the allowed values.
absl::Status ValidateRecipe(const Recipe& recipe);

// The group size used for a linear with `k` inputs. InvalidArgument: an explicit group does not
// divide k.
absl::StatusOr<int64_t> GroupFor(const Recipe& recipe, int64_t k);

// Canonical JSON: fixed key order, every field present. The content key hashes it.
std::string RecipeToJson(const Recipe& recipe);
absl::StatusOr<Recipe> RecipeFromJson(std::string_view json);

}  // namespace babai
