#include "client/json.h"

#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "client/refusal.h"
#include "google/protobuf/util/time_util.h"

namespace babai::client {
namespace {

using google::protobuf::util::TimeUtil;

Json ToJson(const v1::LinearReport& linear) {
  return {{"name", linear.name()},
          {"rows", linear.rows()},
          {"cols", linear.cols()},
          {"bits_per_weight", linear.bits_per_weight()},
          {"relative_error", linear.relative_error()},
          {"proxy_loss", linear.proxy_loss()},
          {"babai_bound", linear.babai_bound()},
          {"clip_rate", linear.clip_rate()},
          {"rate_gap_bits", linear.rate_gap_bits()},
          {"entropy_bits", linear.entropy_bits()},
          {"damping", linear.damping()},
          {"alpha", linear.alpha()},
          {"outliers", linear.outliers()},
          {"damping_doublings", linear.damping_doublings()},
          {"dead_columns", linear.dead_columns()}};
}

Json ToJson(const v1::QualityReport& quality) {
  Json json = {{"tokens", quality.tokens()}};
  if (quality.has_perplexity()) json["perplexity"] = quality.perplexity();
  if (quality.has_reference_perplexity()) {
    json["reference_perplexity"] = quality.reference_perplexity();
  }
  if (quality.has_mean_kl()) json["mean_kl"] = quality.mean_kl();
  if (quality.has_top1_agreement()) json["top1_agreement"] = quality.top1_agreement();
  return json;
}

Json ErrorToJson(const google::rpc::Status& status) {
  const Refusal refusal = RefusalOf(FromProto(status));
  return {{"code", refusal.code},
          {"reason", refusal.reason},
          {"field", refusal.field},
          {"message", refusal.message}};
}

// In the form that RecipeFromJson() of the server takes: "min-pivot" for ORDER_MIN_PIVOT.
Json EnumText(const google::protobuf::EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    if (absl::ascii_isupper(c) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(c);
  }
  std::string text = value.name().substr(prefix.size() + 1);
  for (char& c : text) c = c == '_' ? '-' : absl::ascii_tolower(c);
  return text;
}

void AddQuantize(const v1::QuantizeMetadata& m, Json& json) {
  json["state"] = StateName(m.state());
  json["progress"] = m.fraction();
  json["model"] = m.model();
  json["type"] = "quantize";
  json["recipe"] = m.recipe().preset();
  json["recipe_options"] = RecipeOptions(m.recipe());
  json["source_uri"] = m.source_uri();
  json["block"] = m.block();
  json["blocks"] = m.blocks();
  json["phase"] = m.phase();
  json["elapsed_seconds"] = Seconds(m.elapsed());
  if (m.has_eta()) json["eta_seconds"] = Seconds(m.eta());
  json["calibration_tokens"] = m.calibration_tokens();
  json["worst_linear"] = m.worst_linear();
  json["worst_relative_error"] = m.worst_relative_error();
  json["revision"] = m.revision();
  json["restarts"] = m.restarts();
  json["created"] = TimeUtil::ToString(m.create_time());
  if (m.has_end_time()) json["finished"] = TimeUtil::ToString(m.end_time());
  json["warnings"] = Json::array();
  for (const std::string& warning : m.warnings()) json["warnings"].push_back(warning);
  if (m.linears().empty()) return;
  json["linears"] = Json::array();
  for (const auto& linear : m.linears()) json["linears"].push_back(ToJson(linear));
}

void AddEvaluate(const v1::EvaluateMetadata& m, Json& json) {
  json["state"] = StateName(m.state());
  json["progress"] = m.fraction();
  json["model"] = m.model();
  json["type"] = "evaluate";
  if (!m.reference().empty()) json["reference"] = m.reference();
  json["elapsed_seconds"] = Seconds(m.elapsed());
  json["created"] = TimeUtil::ToString(m.create_time());
}

}  // namespace

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + 1e-9 * duration.nanos();
}

const char* StateName(v1::Model::State state) {
  switch (state) {
    case v1::Model::STATE_UNLOADED:
      return "UNLOADED";
    case v1::Model::STATE_LOADING:
      return "LOADING";
    case v1::Model::STATE_LOADED:
      return "LOADED";
    case v1::Model::STATE_FAILED:
      return "FAILED";
    default:
      return "UNKNOWN";
  }
}

const char* StateName(v1::QuantizeMetadata::State state) {
  switch (state) {
    case v1::QuantizeMetadata::STATE_QUEUED:
      return "QUEUED";
    case v1::QuantizeMetadata::STATE_FETCHING:
      return "FETCHING";
    case v1::QuantizeMetadata::STATE_CALIBRATING:
      return "CALIBRATING";
    case v1::QuantizeMetadata::STATE_QUANTIZING:
      return "QUANTIZING";
    case v1::QuantizeMetadata::STATE_EVALUATING:
      return "EVALUATING";
    case v1::QuantizeMetadata::STATE_READY:
      return "READY";
    case v1::QuantizeMetadata::STATE_CANCELLED:
      return "CANCELLED";
    case v1::QuantizeMetadata::STATE_FAILED:
      return "FAILED";
    default:
      return "UNKNOWN";
  }
}

const char* StateName(v1::EvaluateMetadata::State state) {
  switch (state) {
    case v1::EvaluateMetadata::STATE_QUEUED:
      return "QUEUED";
    case v1::EvaluateMetadata::STATE_RUNNING:
      return "RUNNING";
    case v1::EvaluateMetadata::STATE_DONE:
      return "DONE";
    case v1::EvaluateMetadata::STATE_CANCELLED:
      return "CANCELLED";
    case v1::EvaluateMetadata::STATE_FAILED:
      return "FAILED";
    default:
      return "UNKNOWN";
  }
}

const char* ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_EOS:
      return "eos";
    case v1::FINISH_REASON_STOP_STRING:
      return "stop_string";
    case v1::FINISH_REASON_STOP_TOKEN:
      return "stop_token";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "unknown";
  }
}

Json RecipeOptions(const v1::Recipe& recipe) {
  using Field = google::protobuf::FieldDescriptor;
  const google::protobuf::Reflection& reflection = *recipe.GetReflection();
  std::vector<const Field*> fields;
  reflection.ListFields(recipe, &fields);
  Json json = Json::object();
  for (const Field* field : fields) {
    Json& value = json[field->name()];
    switch (field->cpp_type()) {
      case Field::CPPTYPE_INT32:
        value = reflection.GetInt32(recipe, field);
        break;
      case Field::CPPTYPE_INT64:
        value = reflection.GetInt64(recipe, field);
        break;
      case Field::CPPTYPE_DOUBLE:
        value = reflection.GetDouble(recipe, field);
        break;
      case Field::CPPTYPE_BOOL:
        value = reflection.GetBool(recipe, field);
        break;
      case Field::CPPTYPE_ENUM:
        value = EnumText(*reflection.GetEnum(recipe, field));
        break;
      default:
        value = reflection.GetString(recipe, field);
    }
  }
  return json;
}

std::string IdOf(const google::longrunning::Operation& operation) {
  return std::string(absl::StripPrefix(operation.name(), "operations/"));
}

double LinearBitsPerWeight(const v1::Model& model) {
  double bits = 0, weights = 0;
  for (const v1::LinearReport& linear : model.linears()) {
    const double count = static_cast<double>(linear.rows()) * static_cast<double>(linear.cols());
    bits += linear.bits_per_weight() * count;
    weights += count;
  }
  return weights > 0 ? bits / weights : 0;
}

Json ToJson(const v1::Model& model, bool full) {
  Json json = {{"name", model.name()},
               {"state", StateName(model.state())},
               {"recipe", model.recipe().preset()},
               {"recipe_options", RecipeOptions(model.recipe())},
               {"bits_per_weight", model.bits_per_weight()},
               {"linear_bits_per_weight", LinearBitsPerWeight(model)},
               {"packed_bytes", model.packed_bytes()},
               {"weights", model.weights()},
               {"family", model.family()},
               {"architecture", model.architecture()},
               {"context_length", model.context_length()},
               {"vocab_size", model.vocab_size()},
               {"pinned", model.pinned()},
               {"source_uri", model.source_uri()},
               {"source_digest", model.source_digest()},
               {"calibration_digest", model.calibration_digest()},
               {"content_key", model.content_key()},
               {"tool_version", model.tool_version()},
               {"created", TimeUtil::ToString(model.create_time())},
               {"weight_bytes", model.weight_bytes()},
               {"kv_bytes", model.kv_bytes()},
               {"running", model.running()},
               {"waiting", model.waiting()}};
  if (model.has_error()) json["error"] = ErrorToJson(model.error());
  if (model.has_quality()) json["quality"] = ToJson(model.quality());
  if (!full) return json;
  json["warnings"] = Json::array();
  for (const std::string& warning : model.warnings()) json["warnings"].push_back(warning);
  json["linears"] = Json::array();
  for (const auto& linear : model.linears()) json["linears"].push_back(ToJson(linear));
  return json;
}

Json ToJson(const google::longrunning::Operation& operation) {
  Json json = {{"id", IdOf(operation)}};
  v1::QuantizeMetadata quantize;
  v1::EvaluateMetadata evaluate;
  if (operation.metadata().UnpackTo(&quantize)) {
    AddQuantize(quantize, json);
  } else if (operation.metadata().UnpackTo(&evaluate)) {
    AddEvaluate(evaluate, json);
  }
  if (operation.has_error()) json["error"] = ErrorToJson(operation.error());
  v1::EvaluateResult result;
  if (operation.response().UnpackTo(&result)) json["result"] = ToJson(result);
  return json;
}

Json ToJson(const v1::EvaluateResult& result) {
  Json json = {{"model", result.model()},       {"perplexity", result.perplexity()},
               {"mean_nll", result.mean_nll()}, {"windows", result.windows()},
               {"tokens", result.tokens()},     {"mean_kl", nullptr},
               {"top1_agreement", nullptr}};
  if (!result.has_comparison()) return json;
  const auto& comparison = result.comparison();
  json["reference"] = comparison.reference();
  json["reference_perplexity"] = comparison.reference_perplexity();
  json["mean_kl"] = comparison.mean_kl();
  json["kl_p99"] = comparison.kl_p99();
  json["kl_p999"] = comparison.kl_p999();
  json["kl_max"] = comparison.kl_max();
  json["top1_agreement"] = comparison.top1_agreement();
  return json;
}

double TokensPerSecond(const v1::Finish& finish) {
  const double tokens = static_cast<double>(finish.usage().completion_tokens());
  const double decode = Seconds(finish.timings().decode());
  const double all = decode + Seconds(finish.timings().prefill());
  if (tokens > 1 && decode > 0) return (tokens - 1) / decode;
  return all > 0 ? tokens / all : 0;
}

Json ToJson(const v1::GenerateResult& result) {
  const v1::Finish& finish = result.finish();
  Json json = {{"model", result.prompt_info().model()},
               {"text", result.text()},
               {"token_ids", Json::array()},
               {"finish_reason", ReasonName(finish.reason())},
               {"prompt_tokens", finish.usage().prompt_tokens()},
               {"completion_tokens", finish.usage().completion_tokens()},
               {"tokens_per_second", TokensPerSecond(finish)},
               {"seed", finish.seed()},
               {"queue_seconds", Seconds(finish.timings().queue())},
               {"prefill_seconds", Seconds(finish.timings().prefill())},
               {"decode_seconds", Seconds(finish.timings().decode())}};
  for (const int32_t id : result.token_ids()) json["token_ids"].push_back(id);
  if (!finish.matched_stop().empty()) json["matched_stop"] = finish.matched_stop();
  if (result.logprobs().empty()) return json;
  json["logprobs"] = Json::array();
  for (const float logprob : result.logprobs()) json["logprobs"].push_back(logprob);
  return json;
}

Json ToJson(const v1::ServerInfo& info) {
  Json json = {{"version", info.version()},
               {"device", info.device()},
               {"threads", info.threads()},
               {"started", TimeUtil::ToString(info.start_time())},
               {"uptime_seconds", Seconds(info.uptime())},
               {"models", info.models()},
               {"max_queue", info.max_queue()},
               {"max_prompt_bytes", info.max_prompt_bytes()},
               {"max_receive_bytes", info.max_receive_bytes()},
               {"draining", info.draining()},
               {"recipes", Json::array()},
               {"source_schemes", Json::array()}};
  for (const v1::Recipe& recipe : info.recipes()) json["recipes"].push_back(RecipeOptions(recipe));
  for (const std::string& scheme : info.source_schemes()) json["source_schemes"].push_back(scheme);
  return json;
}

}  // namespace babai::client
