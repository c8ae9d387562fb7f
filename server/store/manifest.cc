// manifest.json: written in a fixed key order, read with every field checked.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/functional/function_ref.h"
#include "server/reason/reason.h"
#include "server/store/packed_model.h"

namespace babai {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormatName = "babai-packed";

// JSON has no NaN: what was not measured is left out.
void PutNumber(Json& object, const char* key, double value) {
  if (std::isfinite(value)) object[key] = value;
}

double GetNumber(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() ? std::nan("") : it->get<double>();
}

// Recipe and configuration are JSON already; in the manifest they are objects that a person can
// read.
Json Embedded(const std::string& text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json() : value;
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    default:
      return "F32";
  }
}

struct TableName {
  TableKind kind;
  const char* name;
};
constexpr TableName kTableNames[] = {
    {TableKind::kShared, "shared"}, {TableKind::kRow, "row"}, {TableKind::kBinary, "binary"}};

const char* NameOf(TableKind kind) {
  for (const TableName& entry : kTableNames) {
    if (entry.kind == kind) return entry.name;
  }
  return "";
}

Json BaseToJson(const StoredFormat& format) {
  switch (format.kind) {
    case StoredFormat::Kind::kDense:
      return {{"format", "dense"}, {"dtype", DTypeName(format.dtype)}};
    case StoredFormat::Kind::kEntropyCoded:
      return {{"format", "entropy_coded"}};
    case StoredFormat::Kind::kPackedTable: {
      Json json = {
          {"format", "packed_table"}, {"bits", format.bits}, {"kind", NameOf(format.table_kind)}};
      if (format.table_kind == TableKind::kShared) json["group"] = format.group;
      return json;
    }
    default:
      return {{"format", "packed_int"},
              {"bits", format.bits},
              {"group", format.group},
              {"symmetric", format.symmetric}};
  }
}

void PutRotation(Json& json, const char* key, const Rotation& r) {
  if (!r.identity()) json[key] = {{"block", r.block}, {"seed", r.seed}};
}

Json ToJson(const StoredFormat& format) {
  Json json = BaseToJson(format);
  if (format.sparse) json["sparse"] = true;
  if (format.col_scales) json["col_scales"] = true;
  PutRotation(json, "rotation_in", format.rotation_in);
  PutRotation(json, "rotation_out", format.rotation_out);
  json["shape"] = format.shape;
  return json;
}

struct NamedNumber {
  const char* key;
  double LinearReport::*value;
};
constexpr NamedNumber kLinearNumbers[] = {{"bits_per_weight", &LinearReport::bits_per_weight},
                                          {"relative_error", &LinearReport::relative_error},
                                          {"proxy_loss", &LinearReport::proxy_loss},
                                          {"babai_bound", &LinearReport::babai_bound},
                                          {"clip_rate", &LinearReport::clip_rate},
                                          {"rate_gap_bits", &LinearReport::rate_gap_bits},
                                          {"entropy_bits", &LinearReport::entropy_bits},
                                          {"damping", &LinearReport::damping},
                                          {"alpha", &LinearReport::alpha},
                                          {"outliers", &LinearReport::outliers}};

Json ToJson(const LinearReport& linear) {
  Json json = {{"name", linear.name}, {"rows", linear.rows}, {"cols", linear.cols}};
  for (const auto& [key, value] : kLinearNumbers) PutNumber(json, key, linear.*value);
  json["damping_doublings"] = linear.damping_doublings;
  json["dead_columns"] = linear.dead_columns;
  return json;
}

Json ToJson(const Evaluation& evaluation) {
  Json json = {{"tokens", evaluation.tokens}};
  PutNumber(json, "perplexity", evaluation.perplexity);
  PutNumber(json, "reference_perplexity", evaluation.reference_perplexity);
  PutNumber(json, "mean_kl", evaluation.mean_kl);
  PutNumber(json, "top1_agreement", evaluation.top1_agreement);
  return json;
}

absl::Status Damaged(std::string_view rule) {
  return Refuse(absl::StatusCode::kDataLoss, reason::kChecksumMismatch, "manifest.json", rule);
}

// Thrown while reading and caught by Guarded(), like the JSON library's own errors.
struct BadManifest {
  std::string rule;
};

template <typename T>
absl::StatusOr<T> Guarded(absl::FunctionRef<absl::StatusOr<T>()> read) {
  try {
    return read();
  } catch (const BadManifest& bad) {
    return Damaged(bad.rule);
  } catch (const nlohmann::json::exception&) {
    return Damaged("a field is missing or of the wrong type");
  }
}

void Require(bool condition, std::string_view rule) {
  if (!condition) throw BadManifest{std::string(rule)};
}

int64_t GetCount(const Json& object, const char* key) {
  const Json& value = object.at(key);
  Require(value.is_number_integer(), std::string(key) + " is not an integer");
  const auto count = value.get<int64_t>();
  Require(count >= 0, std::string(key) + " is negative");
  return count;
}

DType DTypeFromName(const std::string& name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  Require(name == "BF16", "unknown dtype");
  return DType::kBF16;
}

int GetBits(const Json& json) {
  const int64_t bits = GetCount(json, "bits");
  Require(bits <= 8, "more than 8 bits");
  return static_cast<int>(bits);
}

void ReadPackedInt(const Json& json, StoredFormat& format) {
  format.kind = StoredFormat::Kind::kPackedInt;
  format.bits = GetBits(json);
  format.group = GetCount(json, "group");
  format.symmetric = json.at("symmetric").get<bool>();
}

void ReadPackedTable(const Json& json, StoredFormat& format) {
  format.kind = StoredFormat::Kind::kPackedTable;
  format.bits = GetBits(json);
  const auto kind = json.at("kind").get<std::string>();
  const auto known = std::find_if(std::begin(kTableNames), std::end(kTableNames),
                                  [&](const TableName& entry) { return entry.name == kind; });
  Require(known != std::end(kTableNames), "unknown kind of table");
  format.table_kind = known->kind;
  if (format.table_kind == TableKind::kShared) format.group = GetCount(json, "group");
}

void ReadBase(const Json& json, StoredFormat& format) {
  const auto name = json.at("format").get<std::string>();
  if (name == "dense") {
    format.dtype = DTypeFromName(json.at("dtype").get<std::string>());
  } else if (name == "packed_int") {
    ReadPackedInt(json, format);
  } else if (name == "packed_table") {
    ReadPackedTable(json, format);
  } else {
    Require(name == "entropy_coded", "unknown tensor format");
    format.kind = StoredFormat::Kind::kEntropyCoded;
  }
}

Rotation RotationFromJson(const Json& json, const char* key) {
  if (!json.contains(key)) return {};
  const Json& value = json.at(key);
  Rotation rotation;
  rotation.block = GetCount(value, "block");
  Require(rotation.block >= 2, "a rotation without a block");
  Require(value.at("seed").is_number_unsigned(), "the seed of a rotation is not a number");
  rotation.seed = value.at("seed").get<uint64_t>();
  return rotation;
}

StoredFormat FormatFromJson(const Json& json) {
  StoredFormat format;
  ReadBase(json, format);
  format.sparse = json.contains("sparse") && json.at("sparse").get<bool>();
  format.col_scales = json.contains("col_scales") && json.at("col_scales").get<bool>();
  format.rotation_in = RotationFromJson(json, "rotation_in");
  format.rotation_out = RotationFromJson(json, "rotation_out");
  const bool bare = !format.sparse && !format.col_scales && format.rotation_in.identity() &&
                    format.rotation_out.identity();
  Require(format.packed() || bare, "a dense tensor with parts of a packed one");
  format.shape = json.at("shape").get<std::vector<int64_t>>();
  Require(format.shape.size() <= 2, "a tensor has more than two dimensions");
  for (const int64_t d : format.shape) Require(d >= 0, "a tensor has a negative dimension");
  return format;
}

LinearReport LinearFromJson(const Json& json) {
  LinearReport linear;
  linear.name = json.at("name").get<std::string>();
  linear.rows = GetCount(json, "rows");
  linear.cols = GetCount(json, "cols");
  for (const auto& [key, value] : kLinearNumbers) linear.*value = GetNumber(json, key);
  linear.damping_doublings = static_cast<int>(GetCount(json, "damping_doublings"));
  linear.dead_columns = GetCount(json, "dead_columns");
  return linear;
}

Evaluation EvaluationFromJson(const Json& json) {
  Evaluation evaluation;
  evaluation.tokens = GetCount(json, "tokens");
  evaluation.perplexity = GetNumber(json, "perplexity");
  evaluation.reference_perplexity = GetNumber(json, "reference_perplexity");
  evaluation.mean_kl = GetNumber(json, "mean_kl");
  evaluation.top1_agreement = GetNumber(json, "top1_agreement");
  return evaluation;
}

// A file of the model lies directly in its directory, whatever the manifest says.
void CheckFileName(const std::string& name) {
  Require(!name.empty() && name.size() <= 255 && name[0] != '.' &&
              name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos,
          "a file name is not plain");
}

void ReadTables(const Json& json, Manifest& manifest) {
  for (const auto& [name, format] : json.at("tensors").items()) {
    manifest.tensors[name] = FormatFromJson(format);
  }
  for (const Json& linear : json.at("linears")) manifest.linears.push_back(LinearFromJson(linear));
  for (const auto& [name, file] : json.at("files").items()) {
    CheckFileName(name);
    manifest.files[name] = {file.at("sha256").get<std::string>(), GetCount(file, "bytes")};
  }
}

Manifest ReadManifestFields(const Json& json) {
  Manifest manifest;
  manifest.name = json.at("name").get<std::string>();
  manifest.tool_version = json.at("tool_version").get<std::string>();
  manifest.created = json.at("created").get<std::string>();
  manifest.source_uri = json.at("source").at("uri").get<std::string>();
  manifest.source_digest = json.at("source").at("digest").get<std::string>();
  manifest.calibration_digest = json.at("calibration_digest").get<std::string>();
  manifest.content_key = json.at("content_key").get<std::string>();
  manifest.recipe_json = json.at("recipe").dump();
  manifest.config_json = json.at("config").dump();
  manifest.weights = GetCount(json, "weights");
  manifest.packed_bytes = GetCount(json, "packed_bytes");
  manifest.bits_per_weight = GetNumber(json, "bits_per_weight");
  manifest.has_evaluation = json.contains("evaluation");
  if (manifest.has_evaluation) manifest.evaluation = EvaluationFromJson(json.at("evaluation"));
  manifest.warnings = json.at("warnings").get<std::vector<std::string>>();
  ReadTables(json, manifest);
  return manifest;
}

}  // namespace

std::string ManifestToJson(const Manifest& manifest) {
  Json json = {{"format", kFormatName},
               {"schema", manifest.schema},
               {"name", manifest.name},
               {"tool_version", manifest.tool_version},
               {"created", manifest.created},
               {"source", {{"uri", manifest.source_uri}, {"digest", manifest.source_digest}}},
               {"calibration_digest", manifest.calibration_digest},
               {"content_key", manifest.content_key},
               {"recipe", Embedded(manifest.recipe_json)},
               {"config", Embedded(manifest.config_json)},
               {"weights", manifest.weights},
               {"packed_bytes", manifest.packed_bytes}};
  PutNumber(json, "bits_per_weight", manifest.bits_per_weight);
  if (manifest.has_evaluation) json["evaluation"] = ToJson(manifest.evaluation);
  json["warnings"] = manifest.warnings;
  json["tensors"] = Json::object();
  for (const auto& [name, format] : manifest.tensors) json["tensors"][name] = ToJson(format);
  json["linears"] = Json::array();
  for (const LinearReport& linear : manifest.linears) json["linears"].push_back(ToJson(linear));
  json["files"] = Json::object();
  for (const auto& [name, file] : manifest.files) {
    json["files"][name] = {{"sha256", file.sha256}, {"bytes", file.bytes}};
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string LinearReportToJson(const LinearReport& linear) {
  return ToJson(linear).dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<LinearReport> LinearReportFromJson(std::string_view text) {
  return Guarded<LinearReport>([&]() -> absl::StatusOr<LinearReport> {
    return LinearFromJson(Json::parse(text, nullptr, /*allow_exceptions=*/false));
  });
}

absl::StatusOr<Manifest> ManifestFromJson(std::string_view text) {
  return Guarded<Manifest>([&]() -> absl::StatusOr<Manifest> {
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    Require(json.is_object() && json.value("format", "") == kFormatName, "is not a manifest");
    const int64_t schema = GetCount(json, "schema");
    if (schema > kManifestSchema) {
      return Refuse(absl::StatusCode::kFailedPrecondition, reason::kSchemaTooNew, "manifest.json",
                    "was written by a newer release (schema " + std::to_string(schema) +
                        "; this one reads up to " + std::to_string(kManifestSchema) + ")");
    }
    Require(schema >= 1, "has an unknown schema");
    absl::StatusOr<Manifest> manifest = ReadManifestFields(json);
    manifest->schema = static_cast<int>(schema);
    return manifest;
  });
}

}  // namespace babai
