// QuantizationService: jobs in, progress out.
#pragma once

#include <functional>
#include <string>

#include "babai/v1/quantization.grpc.pb.h"
#include "server/jobs/job.h"
#include "server/rpc/call.h"
#include "server/rpc/change_hub.h"
#include "server/rpc/quantize_operations.h"

namespace babai {

// Thread-safe. Everything given must outlive it and the server it is registered with.
class QuantizationService final : public v1::QuantizationService::CallbackService {
 public:
  // What can be refused before a job is queued.
  using Check = std::function<absl::Status(const QuantizeSpec&)>;

  QuantizationService(JobManager* jobs, const QuantizeOperations* operations, ChangeHub* hub,
                      CallCenter* center, Check check)
      : jobs_(jobs),
        operations_(operations),
        hub_(hub),
        center_(center),
        check_(std::move(check)) {}

  grpc::ServerUnaryReactor* Quantize(grpc::CallbackServerContext* context,
                                     const v1::QuantizeRequest* request,
                                     google::longrunning::Operation* response) override;
  grpc::ServerWriteReactor<v1::WatchQuantizationResponse>* WatchQuantization(
      grpc::CallbackServerContext* context, const v1::WatchQuantizationRequest* request) override;
  grpc::ServerUnaryReactor* EstimateQuantization(
      grpc::CallbackServerContext* context, const v1::EstimateQuantizationRequest* request,
      v1::EstimateQuantizationResponse* response) override;

 private:
  absl::StatusOr<Job> Submit(const v1::QuantizeRequest& request);
  bool IsRetry(const std::string& request_id) const;

  JobManager* jobs_;
  const QuantizeOperations* operations_;
  ChangeHub* hub_;
  CallCenter* center_;
  Check check_;
};

}  // namespace babai
