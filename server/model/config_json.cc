// The manifest's form of ModelConfig. One list of fields serves both directions, so that a field
// can not be written and forgotten by the reader.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/model/config.h"
#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/strict_json.h"

namespace babai {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kWhere = "manifest.json: model";
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

constexpr std::string_view kNorms[] = {"rms", "layer"};
constexpr std::string_view kActivations[] = {"silu", "gelu_tanh", "gelu_erf", "relu"};
constexpr std::string_view kPositions[] = {"rope", "learned"};

// Calls visit(name, field) for every scalar field. `Config` is ModelConfig, const or not.
template <typename Config, typename Visit>
void VisitScalars(Config& c, Visit visit) {
  visit("family", c.family);
  visit("architecture", c.architecture);
  visit("vocab", c.vocab);
  visit("hidden", c.hidden);
  visit("intermediate", c.intermediate);
  visit("layers", c.layers);
  visit("heads", c.heads);
  visit("kv_heads", c.kv_heads);
  visit("head_dim", c.head_dim);
  visit("max_positions", c.max_positions);
  visit("norm", c.norm, kNorms);
  visit("norm_eps", c.norm_eps);
  visit("norm_weight_offset", c.norm_weight_offset);
  visit("post_norms", c.post_norms);
  visit("qk_norm", c.qk_norm);
  visit("activation", c.activation, kActivations);
  visit("gated_mlp", c.gated_mlp);
  visit("position", c.position, kPositions);
  visit("position_offset", c.position_offset);
  visit("attention_scale", c.attention_scale);
  visit("attention_softcap", c.attention_softcap);
  visit("logit_softcap", c.logit_softcap);
  visit("embedding_scale", c.embedding_scale);
  visit("tied_embedding", c.tied_embedding);
  visit("bos", c.bos);
  visit("add_bos", c.add_bos);
}

struct Writer {
  Json& json;
  template <typename T>
  void operator()(const char* name, const T& field) {
    json[name] = field;  // a float becomes a double: exact, both ways
  }
  template <typename T, size_t kCount>
  void operator()(const char* name, T field, const std::string_view (&names)[kCount]) {
    json[name] = names[static_cast<int>(field)];
  }
};

struct Reader {
  FieldReader& fields;
  void operator()(const char* name, std::string& field) { field = fields.String(name); }
  void operator()(const char* name, bool& field) { field = fields.Bool(name); }
  void operator()(const char* name, int64_t& field) { field = fields.Int(name, 0, kMaxInt32); }
  void operator()(const char* name, int32_t& field) {
    field = static_cast<int32_t>(fields.Int(name, -1, kMaxInt32));
  }
  void operator()(const char* name, float& field) {
    constexpr double kMax = std::numeric_limits<float>::max();
    field = static_cast<float>(fields.Number(name, -kMax, kMax));
  }
  template <typename T, size_t kCount>
  void operator()(const char* name, T& field, const std::string_view (&names)[kCount]) {
    const auto* found = std::find(names, names + kCount, fields.String(name));
    if (found == names + kCount) return fields.Fail(name, "has an unknown value");
    field = static_cast<T>(found - names);
  }
};

absl::StatusOr<Rope> ReadRope(const Json& json) {
  FieldReader fields(json, std::string(kWhere) + ": ropes");
  const auto list = json.is_object() ? json.find("inv_freq") : json.end();
  const size_t pairs =
      json.is_object() && list != json.end() && list->is_array() ? list->size() : 0;
  Rope rope;
  for (const double inv :
       fields.Numbers("inv_freq", std::min<size_t>(pairs, kMaxHeadDim), 0, 1e30)) {
    rope.inv_freq.push_back(static_cast<float>(inv));
  }
  rope.attention_scale = static_cast<float>(fields.Number("attention_scale", 0, 1e30));
  if (!fields.status().ok()) return fields.status();
  return rope;
}

absl::StatusOr<LayerConfig> ReadLayer(const Json& json) {
  FieldReader fields(json, std::string(kWhere) + ": layer");
  LayerConfig layer;
  layer.sliding_window = fields.Int("sliding_window", 0, kMaxPositions);
  layer.rope = static_cast<int>(fields.Int("rope", 0, 15));
  if (!fields.status().ok()) return fields.status();
  return layer;
}

// Every item of the list json[name] through `read`, appended to `out`.
template <typename T>
absl::Status ReadList(const Json& json, const char* name, absl::StatusOr<T> (*read)(const Json&),
                      std::vector<T>& out) {
  const auto list = json.find(name);
  if (list == json.end() || !list->is_array()) {
    return BadFile(kWhere, std::string(name) + " must be a list");
  }
  for (const Json& item : *list) {
    absl::StatusOr<T> value = read(item);
    if (!value.ok()) return value.status();
    out.push_back(*std::move(value));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ModelConfigToJson(const ModelConfig& config) {
  Json json = Json::object();
  VisitScalars(config, Writer{json});
  json["eos"] = config.eos;
  json["ropes"] = Json::array();
  for (const Rope& rope : config.ropes) {
    json["ropes"].push_back(
        {{"inv_freq", rope.inv_freq}, {"attention_scale", rope.attention_scale}});
  }
  json["layer"] = Json::array();
  for (const LayerConfig& layer : config.layer) {
    json["layer"].push_back({{"sliding_window", layer.sliding_window}, {"rope", layer.rope}});
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<ModelConfig> ModelConfigFromJson(std::string_view text) {
  const absl::StatusOr<Json> json = ParseJsonObject(text, kWhere);
  if (!json.ok()) return json.status();
  ModelConfig config;
  FieldReader fields(*json, std::string(kWhere));
  VisitScalars(config, Reader{fields});
  for (const int64_t id : fields.IntOrInts("eos", 0, kMaxInt32)) {
    config.eos.push_back(static_cast<int32_t>(id));
  }
  absl::Status status = fields.status();
  if (status.ok()) status = ReadList(*json, "ropes", &ReadRope, config.ropes);
  if (status.ok()) status = ReadList(*json, "layer", &ReadLayer, config.layer);
  if (status.ok()) status = CheckModelConfig(config, kWhere);
  if (!status.ok()) return status;
  return config;
}

}  // namespace babai
