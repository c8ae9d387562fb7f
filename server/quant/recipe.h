// A recipe: how a model is to be quantized, as a value. Presets are values with a name; every
// method is a combination of stages (transform, target, metric, grid, solver, ...), not a class.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace babai {

enum class Order { kNatural, kActivation, kMinPivot };   // order of columns in the sweep
enum class Solver { kDense, kNearest, kBabai, kKBest };  // kDense: keep the weights unquantized
enum class ScaleFit { kAbsMax, kMse, kLossWeighted, kSwept };  // how a group's scale is found
enum class DenseType { kSource, kF32, kF16, kBF16 };           // storage of unquantized tensors

// The values a weight may take.
enum class GridKind {
  kUniform,       // F1: 2^bits equal steps with a scale, and a zero point unless symmetric, a group
  kOdd,           // F2: +-1, +-3 ... times the group's scale: no zero
  kPowerOfTwo,    // F2: +-2^-e times the group's scale
  kNormalFloat,   // F2: the quantiles of NF4 (or its 2- and 3-bit kin) times the group's scale
  kFloat4,        // F2: FP4 E2M1 (4 bits) times the group's scale
  kKMeans,        // F2: 2^bits values of the row's own
  kBinaryCoding,  // F2: a bias and `bits` signed scales a row
  kInteger,       // F6: all integers, one step a matrix, entropy-coded
  kColumnInteger  // F6: all integers, steps proportional to 1 / L_jj, entropy-coded
};

// S2: how much of the mismatch between the original model's inputs and those of the partly
// quantized one a linear's target takes up: W* = W + alpha W D H^-1.
enum class Target { kNone, kFixed, kClosedForm, kCrossValidated };

// S1: randomized Hadamard transform of a linear's inputs, outputs or both.
enum class RotationKind { kNone, kInput, kOutput, kBoth };

// Which weights are kept beside the grid as sparse fp16 values.
enum class OutlierRule {
  kNone,
  kOverflow,  // those that the sweep wants outside the grid; scales shrink until `outliers` do
              // (SSQR)
  kSensitive  // those of the largest w^2 H_jj, chosen before (SqueezeLLM)
};

// S8: closed-form refits after the codes are fixed.
enum class Rescale { kNone, kRows, kColumns, kBoth };

// S6: how bits are shared out among the linears under one target.
enum class Allocation {
  kEqual,  // every linear the same
  kHulls   // by each linear's error at each number of bits, weighted by what it costs the model
};

struct Recipe {
  std::string preset = "babai";  // the name it came from; part of the report only
  Solver solver = Solver::kBabai;
  int beam = 1;            // kKBest: partial solutions kept, 1..16
  int descent_passes = 0;  // coordinate descent after the sweep, 0..8
  Order order = Order::kActivation;
  GridKind grid = GridKind::kUniform;
  ScaleFit scale_fit = ScaleFit::kLossWeighted;
  int bits = 4;  // of a code: 2, 3, 4; kUniform also 8
  int intermediate_bits =
      5;  // kBinaryCoding: of the linear grid that its values are chosen from, bits..6
  int64_t group_size =
      0;  // 32, 64, 128; -1 = one group a row; 0 = largest of 128, 64, 32 that divides k
  bool symmetric = false;
  double damping = 0.01;  // times mean diag(H); doubled up to 6 times if the factor fails
  // Stored bits a weight over all linears (0 = whatever comes out), or bytes of the packed model.
  double target_bits = 0;
  int64_t target_bytes = 0;
  Allocation allocation = Allocation::kEqual;
  // Integer grids: what a coded bit may cost the loss, 0 (rounds to nearest) to 2; 1 is theory's
  // optimum.
  double rate_weight = 0;
  OutlierRule outlier_rule = OutlierRule::kNone;
  double outliers = 0;  // fraction of the weights, 0..0.1
  RotationKind rotation = RotationKind::kNone;
  Target target = Target::kNone;
  double alpha = 1;       // Target::kFixed
  bool residual = false;  // o and down also make up for the residual stream's drift
  Rescale rescale = Rescale::kNone;
  bool norm_tweak = false;  // refit each norm's weight to the original model's activations
  int embedding_bits = 8;   // embedding and head together: 16 (dense_type), 8 or 4 (F1, group 32)
  DenseType dense_type = DenseType::kSource;

  // Whether the job must see calibration data, for its inputs' second moments or something else,
  // and whether the original model's stream has to be carried beside the quantized one.
  bool needs_moments() const;
  bool needs_original() const;
  bool codes_integers() const {
    return grid == GridKind::kInteger || grid == GridKind::kColumnInteger;
  }
};

// By name; docs/methods.md says what each consists of. InvalidArgument: unknown preset (the message
// lists them).
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
