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
constexpr Name<Solver> kSolvers[] = {
    {Solver::kDense, "dense"}, {Solver::kNearest, "nearest"}, {Solver::kBabai, "babai"}};
constexpr Name<ScaleFit> kScaleFits[] = {{ScaleFit::kAbsMax, "absmax"},
                                         {ScaleFit::kMse, "mse"},
                                         {ScaleFit::kLossWeighted, "loss-weighted"}};
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
  visit("order", recipe.order, kOrders);
  visit("scale_fit", recipe.scale_fit, kScaleFits);
  visit("bits", recipe.bits);
  visit("group_size", recipe.group_size);
  visit("symmetric", recipe.symmetric);
  visit("damping", recipe.damping);
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

std::vector<Recipe> Presets() {
  Recipe dense, rtn, gptq, babai;
  dense.preset = "dense";
  dense.solver = Solver::kDense;
  dense.embedding_bits = 16;
  rtn.preset = "rtn";
  rtn.solver = Solver::kNearest;
  rtn.order = Order::kNatural;
  rtn.scale_fit = ScaleFit::kAbsMax;
  gptq.preset = "gptq";
  gptq.scale_fit = ScaleFit::kAbsMax;
  babai.preset = "babai";
  return {dense, rtn, gptq, babai};
}

}  // namespace

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Recipe& r : Presets()) names.push_back(r.preset);
  return names;
}

absl::StatusOr<Recipe> PresetRecipe(std::string_view name) {
  for (Recipe& r : Presets()) {
    if (r.preset == name) return std::move(r);
  }
  return InvalidField("recipe.preset",
                      absl::StrCat("must be one of ", absl::StrJoin(PresetNames(), ", ")));
}

absl::Status ValidateRecipe(const Recipe& r) {
  if (!IsOneOf(r.bits, {2, 3, 4, 8})) return InvalidField("recipe.bits", "must be 2, 3, 4 or 8");
  if (!IsOneOf(r.group_size, {0, -1, 32, 64, 128})) {
    return InvalidField("recipe.group_size",
                        "must be 32, 64, 128, -1 (one group a row) or 0 (chosen for each layer)");
  }
  // Written so that a NaN is refused.
  if (!(r.damping >= 0 && r.damping <= 1))
    return InvalidField("recipe.damping", "must be a number from 0 to 1");
  if (!IsOneOf(r.embedding_bits, {8, 16}))
    return InvalidField("recipe.embedding_bits", "must be 8 or 16");
  return absl::OkStatus();
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
    auto preset = PresetRecipe(it->get_ref<const std::string&>());
    if (!preset.ok()) return preset.status();
    recipe = *std::move(preset);
  }
  Reader reader{json};
  ForEachField(recipe, reader);
  if (!reader.status.ok()) return reader.status;
  if (absl::Status s = ValidateRecipe(recipe); !s.ok()) return s;
  return recipe;
}

}  // namespace babai
