// GenerationService: requests to the engine, its output to the caller.
#pragma once

#include "babai/v1/generation.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/call.h"

namespace babai {

// Thread-safe. Engine and CallCenter must outlive it and the server it is registered with.
class GenerationService final : public v1::GenerationService::CallbackService {
 public:
  GenerationService(Engine* engine, CallCenter* center) : engine_(engine), center_(center) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context,
                                         const v1::GenerateRequest* request,
                                         v1::GenerateResult* response) override;

 private:
  Engine* engine_;
  CallCenter* center_;
};

}  // namespace babai
