#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/requests.h"
#include "server/store/catalog.h"

namespace babai {
namespace {

absl::Status CheckRange(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("must be in [", low, ", ", high, "], is ", value));
}

absl::Status SetTexts(const v1::Calibration::Texts& texts, CalibrationSpec& spec) {
  spec.source = CalibrationSpec::Source::kTexts;
  if (texts.texts().empty()) return InvalidField("calibration.texts", "must not be empty");
  if (texts.texts_size() > limits::kCalibrationSequences) {
    return InvalidField("calibration.texts",
                        absl::StrCat("at most ", limits::kCalibrationSequences, " texts"));
  }
  int64_t bytes = 0;
  for (const std::string& text : texts.texts()) bytes += static_cast<int64_t>(text.size());
  if (bytes > limits::kInlineTextBytes) {
    return InvalidField("calibration.texts",
                        absl::StrCat("at most ", limits::kInlineTextBytes, " bytes together"));
  }
  spec.texts.assign(texts.texts().begin(), texts.texts().end());
  return absl::OkStatus();
}

absl::Status SetTokenSequences(const v1::Calibration::TokenSequences& tokens,
                               CalibrationSpec& spec) {
  spec.source = CalibrationSpec::Source::kTokenIds;
  if (tokens.sequences().empty()) return InvalidField("calibration.token_ids", "must not be empty");
  if (tokens.sequences_size() > limits::kCalibrationSequences) {
    return InvalidField("calibration.token_ids",
                        absl::StrCat("at most ", limits::kCalibrationSequences, " sequences"));
  }
  for (const v1::TokenIds& sequence : tokens.sequences()) {
    const auto& ids = sequence.ids();
    const auto bad = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
    if (bad != ids.end()) {
      return InvalidField("calibration.token_ids", absl::StrCat("token id ", *bad, " is negative"));
    }
    spec.token_ids.emplace_back(ids.begin(), ids.end());
  }
  return absl::OkStatus();
}

absl::Status SetCalibrationSource(const v1::Calibration& calibration, CalibrationSpec& spec) {
  switch (calibration.source_case()) {
    case v1::Calibration::kTexts:
      return SetTexts(calibration.texts(), spec);
    case v1::Calibration::kTokenIds:
      return SetTokenSequences(calibration.token_ids(), spec);
    case v1::Calibration::kUri:
      spec.source = CalibrationSpec::Source::kUri;
      if (static_cast<int64_t>(calibration.uri().size()) > limits::kUriBytes) {
        return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidUri, "calibration.uri",
                      absl::StrCat("must be at most ", limits::kUriBytes, " bytes"));
      }
      spec.uri = calibration.uri();
      return absl::OkStatus();
    default:
      spec.source = CalibrationSpec::Source::kSelf;
      return absl::OkStatus();
  }
}

absl::StatusOr<CalibrationSpec> ToCalibration(const v1::Calibration& calibration) {
  CalibrationSpec spec;
  if (auto s = SetCalibrationSource(calibration, spec); !s.ok()) return s;
  if (calibration.has_samples()) spec.samples = calibration.samples();
  if (calibration.has_length()) spec.length = calibration.length();
  if (calibration.has_held_out()) spec.held_out = calibration.held_out();
  if (calibration.has_seed()) spec.seed = calibration.seed();
  const int64_t most = limits::kCalibrationSequences;
  if (auto s = CheckRange("calibration.samples", spec.samples, 1, most); !s.ok()) return s;
  if (calibration.has_length()) {
    const int64_t longest = limits::kCalibrationLength;
    if (auto s = CheckRange("calibration.length", spec.length, 16, longest); !s.ok()) return s;
  }
  if (auto s = CheckRange("calibration.held_out", spec.held_out, 0, most); !s.ok()) return s;
  return spec;
}

absl::Status CheckRequestId(const std::string& id) {
  const auto allowed = [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  };
  if (static_cast<int64_t>(id.size()) <= limits::kRequestIdBytes &&
      std::all_of(id.begin(), id.end(), allowed)) {
    return absl::OkStatus();
  }
  return InvalidField("request_id", "must be at most 64 characters of [A-Za-z0-9._-]");
}

absl::Status CheckSourceUri(const std::string& uri) {
  const auto refuse = [](std::string_view why) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidUri, "source_uri", why);
  };
  if (uri.empty()) return refuse("must not be empty");
  if (static_cast<int64_t>(uri.size()) > limits::kUriBytes) {
    return refuse(absl::StrCat("must be at most ", limits::kUriBytes, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<QuantizeSpec> ToQuantizeSpec(const v1::QuantizeRequest& request) {
  QuantizeSpec spec;
  if (auto s = CheckRequestId(request.request_id()); !s.ok()) return s;
  if (auto s = CheckSourceUri(request.source_uri()); !s.ok()) return s;
  if (auto s = ValidateModelName(request.name(), "name"); !s.ok()) return s;
  spec.request_id = request.request_id();
  spec.source_uri = request.source_uri();
  spec.name = request.name();
  spec.overwrite = request.overwrite();
  auto recipe = ToRecipe(request.recipe());
  if (!recipe.ok()) return recipe.status();
  spec.recipe = *std::move(recipe);
  auto calibration = ToCalibration(request.calibration());
  if (!calibration.ok()) return calibration.status();
  spec.calibration = *std::move(calibration);
  return spec;
}

absl::StatusOr<int64_t> ToPageSize(int32_t page_size) {
  if (auto s = CheckRange("page_size", page_size, 0, limits::kPageSize); !s.ok()) return s;
  return page_size == 0 ? limits::kDefaultPageSize : page_size;
}

absl::StatusOr<std::string> ToOperationId(std::string_view name) {
  constexpr std::string_view kPrefix = "operations/";
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  const bool valid =
      !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
        return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
      });
  if (!valid) return InvalidField("name", "must be the name of an operation: operations/job-...");
  return std::string(name);
}

}  // namespace babai
