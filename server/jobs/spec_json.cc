#include "server/jobs/spec_json.h"

#include <nlohmann/json.hpp>

#include "server/reason/reason.h"

namespace babai {
namespace {

using Json = nlohmann::ordered_json;

absl::Status Damaged() {
  return Refuse(absl::StatusCode::kDataLoss, reason::kIoError, "jobs table",
                "a row holds a request that this program can not have written");
}

QuantizeSpec FromJson(const Json& json) {
  QuantizeSpec spec;
  spec.request_id = json.at("request_id").get<std::string>();
  spec.source_uri = json.at("source_uri").get<std::string>();
  spec.name = json.at("name").get<std::string>();
  spec.overwrite = json.at("overwrite").get<bool>();
  const Json& calibration = json.at("calibration");
  spec.calibration.source =
      static_cast<CalibrationSpec::Source>(calibration.at("source").get<int>());
  spec.calibration.uri = calibration.at("uri").get<std::string>();
  spec.calibration.samples = calibration.at("samples").get<int64_t>();
  spec.calibration.length = calibration.at("length").get<int64_t>();
  spec.calibration.held_out = calibration.at("held_out").get<int64_t>();
  spec.calibration.seed = calibration.at("seed").get<uint64_t>();
  return spec;
}

}  // namespace

std::string SpecToJson(const QuantizeSpec& spec) {
  const CalibrationSpec& c = spec.calibration;
  const Json json = {{"request_id", spec.request_id},
                     {"source_uri", spec.source_uri},
                     {"name", spec.name},
                     {"overwrite", spec.overwrite},
                     {"recipe", RecipeToJson(spec.recipe)},
                     {"calibration",
                      {{"source", static_cast<int>(c.source)},
                       {"uri", c.uri},
                       {"samples", c.samples},
                       {"length", c.length},
                       {"held_out", c.held_out},
                       {"seed", c.seed}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string CalibrationDataToJson(const CalibrationSpec& c) {
  const Json json = {{"texts", c.texts}, {"token_ids", c.token_ids}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<QuantizeSpec> SpecFromJson(std::string_view text, std::string_view data) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    QuantizeSpec spec = FromJson(json);
    auto recipe = RecipeFromJson(json.at("recipe").get<std::string>());
    if (!recipe.ok()) return recipe.status();
    spec.recipe = *std::move(recipe);
    if (!data.empty()) {
      const Json calibration = Json::parse(data, nullptr, /*allow_exceptions=*/false);
      spec.calibration.texts = calibration.at("texts").get<std::vector<std::string>>();
      spec.calibration.token_ids =
          calibration.at("token_ids").get<std::vector<std::vector<int32_t>>>();
    }
    return spec;
  } catch (const nlohmann::json::exception&) {
    return Damaged();
  }
}

}  // namespace babai
