// EvaluationService: checks a request and queues it.
#pragma once

#include "babai/v1/evaluation.grpc.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/call.h"
#include "server/rpc/evaluations.h"
#include "server/store/catalog.h"

namespace babai {

// Thread-safe. Everything given must outlive it and the server it is registered with.
class EvaluationService final : public v1::EvaluationService::CallbackService {
 public:
  EvaluationService(Engine* engine, Catalog* catalog, Evaluations* evaluations, CallCenter* center)
      : engine_(engine), catalog_(catalog), evaluations_(evaluations), center_(center) {}

  grpc::ServerUnaryReactor* Evaluate(grpc::CallbackServerContext* context,
                                     const v1::EvaluateRequest* request,
                                     google::longrunning::Operation* response) override;

 private:
  absl::StatusOr<EvaluateRequest> ToRequest(const v1::EvaluateRequest& request) const;
  absl::Status SetContext(const v1::EvaluateRequest& request, EvaluateRequest& out) const;
  absl::Status SetInput(const v1::EvaluateRequest& request, EvaluateRequest& out) const;

  Engine* engine_;
  Catalog* catalog_;
  Evaluations* evaluations_;
  CallCenter* center_;
};

}  // namespace babai
