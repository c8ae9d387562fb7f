#include "server/rpc/evaluation_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/requests.h"

namespace babai {
namespace {

constexpr int64_t kDefaultContext = 1024;

absl::Status CheckModel(const Catalog& catalog, const std::string& name, std::string_view field) {
  if (absl::Status s = ValidateModelName(name, field); !s.ok()) return s;
  if (catalog.Exists(name)) return absl::OkStatus();
  return Refuse(absl::StatusCode::kNotFound, reason::kModelNotFound, field,
                absl::StrCat("no model '", name, "'"));
}

absl::StatusOr<Numerics> ToNumerics(v1::EvaluateRequest::Numerics numerics) {
  switch (numerics) {
    case v1::EvaluateRequest::NUMERICS_UNSPECIFIED:
    case v1::EvaluateRequest::NUMERICS_REFERENCE:
      return Numerics::kReference;
    case v1::EvaluateRequest::NUMERICS_SERVING:
      return Numerics::kServing;
    default:
      return InvalidField("numerics", absl::StrCat("unknown value ", static_cast<int>(numerics)));
  }
}

}  // namespace

absl::Status EvaluationService::SetContext(const v1::EvaluateRequest& request,
                                           EvaluateRequest& out) const {
  const auto config = engine_->ConfigOf(request.model());
  if (!config.ok()) return config.status();
  const int64_t most = config->max_positions;
  out.context = request.has_context() ? request.context() : std::min(kDefaultContext, most);
  if (out.context >= 2 && out.context <= most) return absl::OkStatus();
  return InvalidField("context", absl::StrCat("must be in [2, ", most, "], the model's context"));
}

absl::Status EvaluationService::SetInput(const v1::EvaluateRequest& request,
                                         EvaluateRequest& out) const {
  if (request.has_text()) {
    const auto size = static_cast<int64_t>(request.text().size());
    if (size >= 1 && size <= limits::kInlineTextBytes) return absl::OkStatus();
    return InvalidField("text",
                        absl::StrCat("must have 1 to ", limits::kInlineTextBytes, " bytes"));
  }
  if (!request.has_token_ids()) return InvalidField("input", "set text or token_ids");
  const auto& ids = request.token_ids().ids();
  if (ids.size() < out.context) {
    return InvalidField("token_ids.ids",
                        absl::StrCat("has ", ids.size(), " ids, one window takes ", out.context));
  }
  const auto config = engine_->ConfigOf(request.model());
  if (!config.ok()) return config.status();
  if (absl::Status s = CheckTokenIds(ids, config->vocab, "token_ids.ids"); !s.ok()) return s;
  out.tokens.assign(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::StatusOr<EvaluateRequest> EvaluationService::ToRequest(
    const v1::EvaluateRequest& request) const {
  EvaluateRequest out;
  if (absl::Status s = CheckModel(*catalog_, request.model(), "model"); !s.ok()) return s;
  if (!request.reference().empty()) {
    if (absl::Status s = CheckModel(*catalog_, request.reference(), "reference"); !s.ok()) return s;
  }
  out.model = request.model();
  out.reference = request.reference();
  if (request.max_windows() < 0) return InvalidField("max_windows", "must be at least 0");
  out.max_windows = request.max_windows();
  const auto numerics = ToNumerics(request.numerics());
  if (!numerics.ok()) return numerics.status();
  out.numerics = *numerics;
  if (absl::Status s = SetContext(request, out); !s.ok()) return s;
  if (absl::Status s = SetInput(request, out); !s.ok()) return s;
  return out;
}

grpc::ServerUnaryReactor* EvaluationService::Evaluate(grpc::CallbackServerContext* context,
                                                      const v1::EvaluateRequest* request,
                                                      google::longrunning::Operation* response) {
  return RunUnary(*center_, center_->slow(), "EvaluationService/Evaluate", context,
                  [this, request, response]() -> absl::Status {
                    if (center_->draining()) return RefuseDraining();
                    auto checked = ToRequest(*request);
                    if (!checked.ok()) return checked.status();
                    auto operation = evaluations_->Submit(*std::move(checked), request->text());
                    if (operation.ok()) *response = *std::move(operation);
                    return operation.status();
                  });
}

}  // namespace babai
