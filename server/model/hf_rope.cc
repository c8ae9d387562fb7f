#include "server/model/hf_rope.h"

#include <map>
#include <string>

#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/rope.h"
#include "server/model/strict_json.h"

namespace babai {
namespace {

using Json = nlohmann::json;
using Kind = RopeRule::Kind;

constexpr char kFile[] = "config.json";
constexpr double kMaxTheta = 1e15, kMaxFactor = 1e6;

const std::map<std::string, Kind, std::less<>> kKinds = {
    {"default", Kind::kDefault}, {"linear", Kind::kLinear}, {"dynamic", Kind::kDynamic},
    {"llama3", Kind::kLlama3},   {"yarn", Kind::kYarn},     {"longrope", Kind::kLongRope},
    {"su", Kind::kLongRope},  // longrope's first name
};

// Reads `rule` from `scaling`; what it lacks comes from `rule` as given.
absl::Status ReadRule(const Json& scaling, const Json& config, RopeRule& rule) {
  FieldReader in(scaling, std::string(kFile) + ": rope");
  const std::string type = in.String("rope_type", in.String("type", "default"));
  const auto kind = kKinds.find(type);
  if (in.status().ok() && kind == kKinds.end()) {
    return UnsupportedModel(kFile, "RoPE scaling of type " + Quoted(type) + " is not supported");
  }
  if (!in.status().ok()) return in.status();
  rule.kind = kind->second;
  rule.theta = in.Number("rope_theta", 1.001, kMaxTheta, rule.theta);
  if (rule.kind == Kind::kLinear || rule.kind == Kind::kLlama3) {
    rule.factor = in.Number("factor", 1e-3, kMaxFactor);
  }
  if (rule.kind == Kind::kLlama3 || rule.kind == Kind::kYarn || rule.kind == Kind::kLongRope) {
    // Phi-3 keeps the trained context beside the rope object, others inside.
    FieldReader outer(config, kFile);
    rule.original_positions = outer.Number(
        "original_max_position_embeddings", 2, kMaxPositions,
        in.Number("original_max_position_embeddings", 2, kMaxPositions, rule.max_positions));
    if (!outer.status().ok()) return outer.status();
  }
  if (rule.kind == Kind::kYarn) {
    rule.factor =
        in.Number("factor", 1e-3, kMaxFactor, rule.max_positions / rule.original_positions);
    rule.beta_fast = in.Number("beta_fast", 1e-3, 1e6, rule.beta_fast);
    rule.beta_slow = in.Number("beta_slow", 1e-3, 1e6, rule.beta_slow);
    rule.mscale = in.Number("mscale", 0, 1e3, 0);
    rule.mscale_all_dim = in.Number("mscale_all_dim", 0, 1e3, 0);
    rule.truncate = in.Bool("truncate", true);
  }
  if ((rule.kind == Kind::kYarn || rule.kind == Kind::kLongRope) && in.Has("attention_factor")) {
    rule.attention_factor = in.Number("attention_factor", 1e-3, 1e3);
  }
  if (rule.kind == Kind::kLlama3) {
    rule.low_freq_factor = in.Number("low_freq_factor", 1e-3, 1e6);
    rule.high_freq_factor = in.Number("high_freq_factor", 1e-3, 1e6);
    if (rule.high_freq_factor <= rule.low_freq_factor) {
      in.Fail("high_freq_factor", "must be above low_freq_factor");
    }
  }
  if (rule.kind == Kind::kLongRope) {
    const auto pairs = static_cast<size_t>(rule.rotary_dim / 2);
    rule.short_factor = in.Numbers("short_factor", pairs, 1e-3, kMaxFactor);
    rule.long_factor = in.Numbers("long_factor", pairs, 1e-3, kMaxFactor);
  }
  return in.status();
}

const Json& ObjectAt(const Json& json, const char* key) {
  static const Json kEmpty = Json::object();
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? kEmpty : *found;
}

// theta, partial rotation and lengths: what every rule of this model starts from.
absl::StatusOr<RopeRule> StartRule(const Json& json, const Family& family,
                                   const ModelConfig& config, const Json& parameters) {
  FieldReader in(json, kFile);
  FieldReader inner(parameters, std::string(kFile) + ": rope_parameters");
  RopeRule rule;
  rule.theta = in.Number("rope_theta", 1.001, kMaxTheta, family.defaults.rope_theta);
  const double part =
      inner.Number("partial_rotary_factor", 0, 1, in.Number("partial_rotary_factor", 0, 1, 1.0));
  if (!in.status().ok()) return in.status();
  if (!inner.status().ok()) return inner.status();
  rule.rotary_dim = static_cast<int64_t>(static_cast<double>(config.head_dim) * part);
  if (rule.rotary_dim < 2 || rule.rotary_dim % 2 != 0) {
    return BadFile(kFile, "RoPE over " + std::to_string(rule.rotary_dim) +
                              " of a head's elements: must be an even number above zero");
  }
  rule.max_positions = static_cast<double>(config.max_positions);
  return rule;
}

absl::Status Append(const Json& scaling, const Json& config, RopeRule rule, ModelConfig& out) {
  if (absl::Status status = ReadRule(scaling, config, rule); !status.ok()) return status;
  out.ropes.push_back(MakeRope(rule));
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadHfRopes(const Json& json, const Family& family, ModelConfig& config) {
  const Json& parameters = ObjectAt(json, "rope_parameters");
  const bool per_type = parameters.is_object() && parameters.contains("full_attention");
  const Json& scaling =
      parameters.is_object() && !parameters.empty() ? parameters : ObjectAt(json, "rope_scaling");
  const absl::StatusOr<RopeRule> start =
      StartRule(json, family, config, per_type ? Json::object() : parameters);
  if (!start.ok()) return start.status();
  if (family.windows != WindowRule::kPattern) {
    if (per_type)
      return UnsupportedModel(kFile, "one RoPE per layer type is not this family's way");
    return Append(scaling, json, *start, config);
  }
  // Windowed layers have their own base and are never scaled.
  RopeRule local = *start;
  FieldReader in(json, kFile);
  local.theta = in.Number("rope_local_base_freq", 1.001, kMaxTheta, 10000.0);
  if (!in.status().ok()) return in.status();
  absl::Status status =
      Append(per_type ? parameters["full_attention"] : scaling, json, *start, config);
  if (!status.ok()) return status;
  return Append(per_type ? ObjectAt(parameters, "sliding_attention") : Json::object(), json, local,
                config);
}

}  // namespace babai
