#include "server/quant/recipe.h"

#include <cmath>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::ordered_json;

template <typename E>
struct Name {
  E value;
  const char* text;
};

constexpr Name<Order> kOrders[] = {{Order::kNatural, "natural"},
                                   {Order::kActivation, "activation"},
                                   {Order::kMinPivot, "min-pivot"}};
constexpr Name<Solver> kSolvers[] = {{Solver::kDense, "dense"},
                                     {Solver::kNearest, "nearest"},
                                     {Solver::kBabai, "babai"},
                                     {Solver::kKBest, "k-best"}};
constexpr Name<GridKind> kGrids[] = {{GridKind::kUniform, "uniform"},
                                     {GridKind::kOdd, "odd"},
                                     {GridKind::kPowerOfTwo, "power-of-two"},
                                     {GridKind::kNormalFloat, "normal-float"},
                                     {GridKind::kFloat4, "float4"},
                                     {GridKind::kKMeans, "k-means"},
                                     {GridKind::kBinaryCoding, "binary-coding"},
                                     {GridKind::kInteger, "integer"},
                                     {GridKind::kColumnInteger, "column-integer"}};
constexpr Name<ScaleFit> kScaleFits[] = {{ScaleFit::kAbsMax, "abs-max"},
                                         {ScaleFit::kMse, "mse"},
                                         {ScaleFit::kLossWeighted, "loss-weighted"},
                                         {ScaleFit::kSwept, "swept"}};
constexpr Name<Target> kTargets[] = {{Target::kNone, "none"},
                                     {Target::kFixed, "fixed"},
                                     {Target::kClosedForm, "closed-form"},
                                     {Target::kCrossValidated, "cross-validated"}};
constexpr Name<RotationKind> kRotations[] = {{RotationKind::kNone, "none"},
                                             {RotationKind::kInput, "input"},
                                             {RotationKind::kOutput, "output"},
                                             {RotationKind::kBoth, "both"}};
constexpr Name<OutlierRule> kOutlierRules[] = {{OutlierRule::kNone, "none"},
                                               {OutlierRule::kOverflow, "overflow"},
                                               {OutlierRule::kSensitive, "sensitive"}};
constexpr Name<Rescale> kRescales[] = {{Rescale::kNone, "none"},
                                       {Rescale::kRows, "rows"},
                                       {Rescale::kColumns, "columns"},
                                       {Rescale::kBoth, "both"}};
constexpr Name<Allocation> kAllocations[] = {{Allocation::kEqual, "equal"},
                                             {Allocation::kHulls, "hulls"}};
constexpr Name<DenseType> kDenseTypes[] = {{DenseType::kSource, "source"},
                                           {DenseType::kF32, "f32"},
                                           {DenseType::kF16, "f16"},
                                           {DenseType::kBF16, "bf16"}};

template <typename E, size_t kCount>
const char* TextOf(const Name<E> (&names)[kCount], E value) {
  for (const auto& name : names) {
    if (name.value == value) return name.text;
  }
  return "";
}

bool IsOneOf(int64_t value, std::initializer_list<int64_t> allowed) {
  for (int64_t a : allowed) {
    if (a == value) return true;
  }
  return false;
}

// ---- the fields
// ------------------------------------------------------------------------------------ Each kind of
// field knows its JSON form; Fields() lists them once, in canonical order.

absl::Status WrongType(const char* key, const char* type) {
  return InvalidField(absl::StrCat("recipe.", key), absl::StrCat("must be ", type));
}

absl::Status Read(const Json& json, const char* key, bool& out) {
  if (!json.is_boolean()) return WrongType(key, "true or false");
  out = json.get<bool>();
  return absl::OkStatus();
}

absl::Status Read(const Json& json, const char* key, int64_t& out) {
  // An unsigned above the range of int64 would wrap around.
  const bool fits = json.is_number_integer() &&
                    (!json.is_number_unsigned() || json.get<uint64_t>() < (uint64_t{1} << 63));
  if (!fits) return WrongType(key, "an integer");
  out = json.get<int64_t>();
  return absl::OkStatus();
}

absl::Status Read(const Json& json, const char* key, int& out) {
  int64_t wide = 0;
  if (absl::Status s = Read(json, key, wide); !s.ok()) return s;
  out = static_cast<int>(wide);
  return out == wide ? absl::OkStatus() : WrongType(key, "a small integer");
}

absl::Status Read(const Json& json, const char* key, double& out) {
  if (!json.is_number()) return WrongType(key, "a number");
  out = json.get<double>();
  return absl::OkStatus();
}

template <typename E, size_t kCount>
absl::Status Read(const Json& json, const char* key, const Name<E> (&names)[kCount], E& out) {
  for (const auto& name : names) {
    if (json.is_string() && json.get_ref<const std::string&>() == name.text) {
      out = name.value;
      return absl::OkStatus();
    }
  }
  return WrongType(key, absl::StrCat("one of ", absl::StrJoin(names, ", ",
                                                              [](std::string* s, const auto& n) {
                                                                absl::StrAppend(s, n.text);
                                                              }))
                            .c_str());
}

// Calls visit(key, field) or visit(key, field, names) for every field but the preset.
template <typename R, typename Visit>
void ForEachField(R& recipe, Visit&& visit) {
  visit("solver", recipe.solver, kSolvers);
  visit("beam", recipe.beam);
  visit("descent_passes", recipe.descent_passes);
  visit("order", recipe.order, kOrders);
  visit("grid", recipe.grid, kGrids);
  visit("scale_fit", recipe.scale_fit, kScaleFits);
  visit("bits", recipe.bits);
  visit("intermediate_bits", recipe.intermediate_bits);
  visit("group_size", recipe.group_size);
  visit("symmetric", recipe.symmetric);
  visit("damping", recipe.damping);
  visit("target_bits", recipe.target_bits);
  visit("target_bytes", recipe.target_bytes);
  visit("allocation", recipe.allocation, kAllocations);
  visit("rate_weight", recipe.rate_weight);
  visit("outlier_rule", recipe.outlier_rule, kOutlierRules);
  visit("outliers", recipe.outliers);
  visit("rotation", recipe.rotation, kRotations);
  visit("target", recipe.target, kTargets);
  visit("alpha", recipe.alpha);
  visit("residual", recipe.residual);
  visit("rescale", recipe.rescale, kRescales);
  visit("norm_tweak", recipe.norm_tweak);
  visit("embedding_bits", recipe.embedding_bits);
  visit("dense_type", recipe.dense_type, kDenseTypes);
}

struct Writer {
  Json& json;
  template <typename V>
  void operator()(const char* key, const V& value) const {
    json[key] = value;
  }
  template <typename E, size_t kCount>
  void operator()(const char* key, const E& value, const Name<E> (&names)[kCount]) const {
    json[key] = TextOf(names, value);
  }
};

// Reads the fields that are there; the others keep their values.
struct Reader {
  const Json& json;
  absl::Status status = absl::OkStatus();

  template <typename... Args>
  void Take(const char* key, Args&&... args) {
    const auto it = json.find(key);
    if (it == json.end() || !status.ok()) return;
    status = Read(*it, key, std::forward<Args>(args)...);
  }
  template <typename V>
  void operator()(const char* key, V& value) {
    Take(key, value);
  }
  template <typename E, size_t kCount>
  void operator()(const char* key, E& value, const Name<E> (&names)[kCount]) {
    Take(key, names, value);
  }
};

// A size replaces the preset's target. Bits stand for a target where there is one: what a scale
// and, on the uniform grid, a zero point for every 64 or 128 weights add to them.
void ResolveTarget(const Json& json, Recipe& recipe) {
  if (json.contains("target_bits")) return;
  if (recipe.target_bytes != 0) {
    recipe.target_bits = 0;
  } else if (recipe.target_bits != 0 && json.contains("bits")) {
    recipe.target_bits = recipe.bits + (recipe.grid == GridKind::kUniform ? 0.25 : 0.125);
  }
}

absl::Status NameUnknownKey(const Json& json) {
  const Json known = Json::parse(RecipeToJson(Recipe{}));
  for (const auto& [key, value] : json.items()) {
    if (!known.contains(key))
      return InvalidField(absl::StrCat("recipe.", key), "is not a field of a recipe");
  }
  return absl::OkStatus();
}

// ---- the presets
// -----------------------------------------------------------------------------------

// docs/methods.md tells what each stands for and where it comes from.
std::vector<Recipe> MakePresets() {
  std::vector<Recipe> presets;
  // A copy of the earlier preset `base`, to be changed.
  const auto add = [&](const char* name, const char* base) -> Recipe& {
    Recipe recipe;
    for (const Recipe& p : presets) {
      if (p.preset == base) recipe = p;
    }
    recipe.preset = name;
    return presets.emplace_back(std::move(recipe));
  };

  Recipe& dense = add("dense", "");
  dense.solver = Solver::kDense;
  dense.embedding_bits = 16;

  Recipe& rtn = add("rtn", "");
  rtn.solver = Solver::kNearest;
  rtn.order = Order::kNatural;
  rtn.scale_fit = ScaleFit::kAbsMax;

  add("gptq", "").scale_fit = ScaleFit::kAbsMax;
  add("babai", "");

  Recipe& ssqr = add("ssqr", "babai");
  ssqr.outlier_rule = OutlierRule::kOverflow;
  ssqr.outliers = 0.01;

  Recipe& hptq = add("hptq", "babai");
  hptq.grid = GridKind::kInteger;
  hptq.target_bits = 4.125;

  Recipe& gptqt = add("gptqt", "babai");
  gptqt.grid = GridKind::kBinaryCoding;
  gptqt.bits = 3;
  gptqt.scale_fit = ScaleFit::kSwept;  // the paper's "re-explore"

  Recipe& coreq = add("coreq", "babai");
  coreq.target = Target::kClosedForm;
  Recipe& k_coreq = add("k-coreq", "coreq");
  k_coreq.solver = Solver::kKBest;
  k_coreq.beam = 8;
  k_coreq.scale_fit = ScaleFit::kSwept;

  Recipe& watersic = add("watersic", "hptq");
  watersic.grid = GridKind::kColumnInteger;
  watersic.order = Order::kNatural;
  watersic.target = Target::kFixed;
  watersic.residual = true;
  watersic.rescale = Rescale::kBoth;
  watersic.damping = 1e-4;

  add("quip", "babai").rotation = RotationKind::kBoth;

  Recipe& squeezellm = add("squeezellm", "rtn");
  squeezellm.grid = GridKind::kKMeans;
  squeezellm.scale_fit = ScaleFit::kLossWeighted;
  squeezellm.outlier_rule = OutlierRule::kSensitive;
  squeezellm.outliers = 0.005;

  Recipe& pot = add("pot", "babai");
  pot.grid = GridKind::kPowerOfTwo;
  pot.bits = 3;
  pot.scale_fit = ScaleFit::kSwept;
  Recipe& nf4 = add("nf4", "babai");
  nf4.grid = GridKind::kNormalFloat;
  nf4.scale_fit = ScaleFit::kSwept;

  Recipe& mixed = add("mixed", "babai");
  mixed.allocation = Allocation::kHulls;
  mixed.target_bits = 4.25;

  Recipe& best = add("best", "watersic");
  best.order = Order::kActivation;
  best.damping = 0.01;
  best.target = Target::kCrossValidated;
  best.allocation = Allocation::kHulls;
  return presets;
}

const std::vector<Recipe>& Presets() {
  static const auto* presets = new std::vector<Recipe>(MakePresets());
  return *presets;
}

absl::Status CheckStorage(const Recipe& r) {
  if (!IsOneOf(r.group_size, {0, -1, 32, 64, 128})) {
    return InvalidField("recipe.group_size",
                        "must be 32, 64, 128, -1 (one group a row) or 0 (chosen for each layer)");
  }
  // Written so that a NaN is refused.
  if (!(r.damping >= 0 && r.damping <= 1))
    return InvalidField("recipe.damping", "must be a number from 0 to 1");
  if (!IsOneOf(r.embedding_bits, {4, 8, 16}))
    return InvalidField("recipe.embedding_bits", "must be 4, 8 or 16");
  return absl::OkStatus();
}

absl::Status CheckGrid(const Recipe& r) {
  const bool uniform = r.grid == GridKind::kUniform;
  if (uniform && !IsOneOf(r.bits, {2, 3, 4, 8}))
    return InvalidField("recipe.bits", "must be 2, 3, 4 or 8");
  if (r.grid == GridKind::kFloat4 && r.bits != 4)
    return InvalidField("recipe.bits", "must be 4 on the float4 grid");
  if (!uniform && !IsOneOf(r.bits, {2, 3, 4}))
    return InvalidField("recipe.bits", "must be 2, 3 or 4 on this grid");
  if (r.grid == GridKind::kBinaryCoding &&
      (r.intermediate_bits < r.bits || r.intermediate_bits > 6))
    return InvalidField("recipe.intermediate_bits", "must be from recipe.bits to 6");
  if (r.grid == GridKind::kColumnInteger && r.solver == Solver::kNearest)
    return InvalidField("recipe.grid", "column steps need a solver with a metric: babai or k-best");
  if (r.codes_integers() && r.target_bits == 0 && r.target_bytes == 0)
    return InvalidField("recipe.target_bits", "an integer grid needs target_bits or target_bytes");
  if (r.codes_integers() && r.outlier_rule != OutlierRule::kNone)
    return InvalidField("recipe.outlier_rule",
                        "an integer grid has no outliers: nothing overflows");
  return absl::OkStatus();
}

absl::Status CheckRate(const Recipe& r) {
  // Written so that a NaN is refused.
  if (!(r.target_bits == 0 || (r.target_bits >= 1 && r.target_bits <= 8.5)))
    return InvalidField("recipe.target_bits", "must be 0 or a number from 1 to 8.5");
  if (!(r.rate_weight >= 0 && r.rate_weight <= 2))
    return InvalidField("recipe.rate_weight", "must be a number from 0 to 2");
  if (r.target_bytes < 0) return InvalidField("recipe.target_bytes", "must not be negative");
  if (r.target_bits != 0 && r.target_bytes != 0)
    return InvalidField("recipe.target_bytes", "give target_bits or target_bytes, not both");
  const bool targeted = r.target_bits != 0 || r.target_bytes != 0;
  if (targeted && !r.codes_integers() && r.allocation == Allocation::kEqual)
    return InvalidField(
        "recipe.allocation",
        "a grid of fixed bits meets a target only by allocation hulls: try preset mixed or best");
  if (!targeted && r.allocation == Allocation::kHulls)
    return InvalidField("recipe.target_bits", "allocation hulls needs target_bits or target_bytes");
  if (r.allocation == Allocation::kHulls && !r.codes_integers() && r.grid != GridKind::kUniform)
    return InvalidField("recipe.allocation", "hulls works on uniform and integer grids");
  return absl::OkStatus();
}

absl::Status CheckOutliers(const Recipe& r) {
  if (!(r.outliers >= 0 && r.outliers <= 0.1))
    return InvalidField("recipe.outliers", "must be a number from 0 to 0.1");
  if ((r.outlier_rule == OutlierRule::kNone) != (r.outliers == 0))
    return InvalidField("recipe.outliers", "goes with an outlier_rule, above 0");
  if (r.outlier_rule == OutlierRule::kOverflow && r.grid != GridKind::kUniform)
    return InvalidField("recipe.outlier_rule", "overflow needs the uniform grid");
  return absl::OkStatus();
}

absl::Status CheckSolver(const Recipe& r) {
  if (r.beam < 1 || r.beam > 16) return InvalidField("recipe.beam", "must be from 1 to 16");
  if (r.beam > 1 && r.solver != Solver::kKBest)
    return InvalidField("recipe.beam", "above 1 needs solver k-best");
  if (r.descent_passes < 0 || r.descent_passes > 8)
    return InvalidField("recipe.descent_passes", "must be from 0 to 8");
  if (r.solver == Solver::kNearest && (r.descent_passes > 0 || r.target != Target::kNone ||
                                       r.residual || r.outlier_rule == OutlierRule::kOverflow)) {
    return InvalidField("recipe.solver",
                        "nearest looks at each weight alone: descent_passes, target, "
                        "residual and overflow outliers need babai or k-best");
  }
  if (r.residual && r.target == Target::kNone)
    return InvalidField(
        "recipe.residual",
        "is a part of the target: give target fixed, closed-form or cross-validated");
  if (!(r.alpha >= 0 && r.alpha <= 2))
    return InvalidField("recipe.alpha", "must be a number from 0 to 2");
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Recipe& r : Presets()) names.push_back(r.preset);
  return names;
}

absl::StatusOr<Recipe> PresetRecipe(std::string_view name) {
  for (const Recipe& r : Presets()) {
    if (r.preset == name) return r;
  }
  return InvalidField("recipe.preset",
                      absl::StrCat("must be one of ", absl::StrJoin(PresetNames(), ", ")));
}

absl::Status ValidateRecipe(const Recipe& r) {
  if (r.solver == Solver::kDense) return CheckStorage(r);
  for (const auto check : {CheckStorage, CheckGrid, CheckRate, CheckOutliers, CheckSolver}) {
    if (absl::Status s = check(r); !s.ok()) return s;
  }
  return absl::OkStatus();
}

bool Recipe::needs_moments() const {
  if (solver == Solver::kDense) return false;
  return solver != Solver::kNearest || grid == GridKind::kKMeans ||
         grid == GridKind::kBinaryCoding || scale_fit == ScaleFit::kLossWeighted ||
         scale_fit == ScaleFit::kSwept || outlier_rule == OutlierRule::kSensitive ||
         rescale != Rescale::kNone || norm_tweak || allocation == Allocation::kHulls;
}

bool Recipe::needs_original() const {
  return solver != Solver::kDense && (target != Target::kNone || norm_tweak);
}

absl::StatusOr<int64_t> GroupFor(const Recipe& recipe, int64_t k) {
  if (recipe.group_size == -1) return k;
  for (int64_t group : {128, 64, 32}) {
    if (recipe.group_size == 0 && k % group == 0) return group;
  }
  if (recipe.group_size == 0) return k;
  if (k % recipe.group_size == 0) return recipe.group_size;
  return InvalidField(
      "recipe.group_size",
      absl::StrCat(recipe.group_size, " does not divide a layer's ", k, " inputs; use 0 or -1"));
}

std::string RecipeToJson(const Recipe& recipe) {
  Json json;
  json["preset"] = recipe.preset;
  ForEachField(recipe, Writer{json});
  return json.dump();
}

absl::StatusOr<Recipe> RecipeFromJson(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidField("recipe", "must be a JSON object");
  if (absl::Status s = NameUnknownKey(json); !s.ok()) return s;
  Recipe recipe;
  if (const auto it = json.find("preset"); it != json.end()) {
    if (!it->is_string()) return WrongType("preset", "a string");
    const auto preset = PresetRecipe(it->get_ref<const std::string&>());
    if (!preset.ok()) return preset.status();
    recipe = *preset;
  }
  Reader reader{json};
  ForEachField(recipe, reader);
  if (!reader.status.ok()) return reader.status;
  ResolveTarget(json, recipe);
  if (absl::Status s = ValidateRecipe(recipe); !s.ok()) return s;
  return recipe;
}

}  // namespace babai
