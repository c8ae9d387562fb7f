// TokenizerService: a model's tokenizer, loaded or not.
#pragma once

#include <memory>
#include <string>

#include "babai/v1/tokenizer.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/call.h"

namespace babai {

// Thread-safe. Everything given must outlive it and the server it is registered with.
class TokenizerService final : public v1::TokenizerService::CallbackService {
 public:
  TokenizerService(Engine* engine, CallCenter* center) : engine_(engine), center_(center) {}

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* ApplyChatTemplate(grpc::CallbackServerContext* context,
                                              const v1::ApplyChatTemplateRequest* request,
                                              v1::ApplyChatTemplateResponse* response) override;

 private:
  absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerOf(const std::string& model) const;
  absl::Status Encode(const v1::TokenizeRequest& request, v1::TokenizeResponse& response) const;
  absl::Status Decode(const v1::DetokenizeRequest& request, v1::DetokenizeResponse& response) const;
  absl::Status Render(const v1::ApplyChatTemplateRequest& request,
                      v1::ApplyChatTemplateResponse& response) const;

  Engine* engine_;
  CallCenter* center_;
};

}  // namespace babai
