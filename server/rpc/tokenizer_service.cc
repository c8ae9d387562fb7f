#include "server/rpc/tokenizer_service.h"

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/requests.h"
#include "server/store/catalog.h"

namespace babai {

absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerService::TokenizerOf(
    const std::string& model) const {
  if (absl::Status s = ValidateModelName(model, "model"); !s.ok()) return s;
  return engine_->TokenizerOf(model);
}

absl::Status TokenizerService::Encode(const v1::TokenizeRequest& request,
                                      v1::TokenizeResponse& response) const {
  if (static_cast<int64_t>(request.text().size()) > limits::kTokenizeBytes) {
    return InvalidField("text", absl::StrCat("must be at most ", limits::kTokenizeBytes, " bytes"));
  }
  const auto tokenizer = TokenizerOf(request.model());
  if (!tokenizer.ok()) return tokenizer.status();
  const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
  const auto ids =
      (*tokenizer)->Encode(request.text(), add_special, request.parse_special_tokens());
  if (!ids.ok()) return ids.status();
  response.mutable_token_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

absl::Status TokenizerService::Decode(const v1::DetokenizeRequest& request,
                                      v1::DetokenizeResponse& response) const {
  if (request.token_ids_size() > limits::kDetokenizeIds) {
    return InvalidField("token_ids", absl::StrCat("at most ", limits::kDetokenizeIds, " ids"));
  }
  const auto tokenizer = TokenizerOf(request.model());
  if (!tokenizer.ok()) return tokenizer.status();
  const auto& ids = request.token_ids();
  if (absl::Status s = CheckTokenIds(ids, (*tokenizer)->vocab_size(), "token_ids"); !s.ok()) {
    return s;
  }
  auto text = (*tokenizer)->Decode({ids.begin(), ids.end()}, request.skip_special_tokens());
  if (text.ok()) response.set_text(*std::move(text));
  return text.status();
}

absl::Status TokenizerService::Render(const v1::ApplyChatTemplateRequest& request,
                                      v1::ApplyChatTemplateResponse& response) const {
  const auto messages = ToChatMessages(request.messages(), "messages");
  if (!messages.ok()) return messages.status();
  const auto tokenizer = TokenizerOf(request.model());
  if (!tokenizer.ok()) return tokenizer.status();
  const bool add_prompt = !request.has_add_generation_prompt() || request.add_generation_prompt();
  auto text = (*tokenizer)->RenderChat(*messages, add_prompt);
  if (!text.ok()) return text.status();
  const auto ids = (*tokenizer)->EncodeChat(*messages, add_prompt);
  if (!ids.ok()) return ids.status();
  response.set_text(*std::move(text));
  response.mutable_token_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* TokenizerService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return RunUnary(*center_, center_->quick(), "TokenizerService/Tokenize", context,
                  [this, request, response] { return Encode(*request, *response); });
}

grpc::ServerUnaryReactor* TokenizerService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return RunUnary(*center_, center_->quick(), "TokenizerService/Detokenize", context,
                  [this, request, response] { return Decode(*request, *response); });
}

grpc::ServerUnaryReactor* TokenizerService::ApplyChatTemplate(
    grpc::CallbackServerContext* context, const v1::ApplyChatTemplateRequest* request,
    v1::ApplyChatTemplateResponse* response) {
  return RunUnary(*center_, center_->quick(), "TokenizerService/ApplyChatTemplate", context,
                  [this, request, response] { return Render(*request, *response); });
}

}  // namespace babai
