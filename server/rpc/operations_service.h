// google.longrunning.Operations over every OperationSource.
#pragma once

#include <vector>

#include "google/longrunning/operations.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/change_hub.h"
#include "server/rpc/operation_source.h"

namespace babai {

// Thread-safe. Everything given must outlive it and the server it is registered with.
class OperationsService final : public google::longrunning::Operations::CallbackService {
 public:
  OperationsService(std::vector<OperationSource*> sources, ChangeHub* hub, CallCenter* center)
      : sources_(std::move(sources)), hub_(hub), center_(center) {}

  grpc::ServerUnaryReactor* ListOperations(
      grpc::CallbackServerContext* context,
      const google::longrunning::ListOperationsRequest* request,
      google::longrunning::ListOperationsResponse* response) override;
  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context,
                                         const google::longrunning::GetOperationRequest* request,
                                         Operation* response) override;
  grpc::ServerUnaryReactor* DeleteOperation(
      grpc::CallbackServerContext* context,
      const google::longrunning::DeleteOperationRequest* request,
      google::protobuf::Empty* response) override;
  grpc::ServerUnaryReactor* CancelOperation(
      grpc::CallbackServerContext* context,
      const google::longrunning::CancelOperationRequest* request,
      google::protobuf::Empty* response) override;
  // Returns when the operation is done, after `timeout` (default: none), or at the call's deadline.
  grpc::ServerUnaryReactor* WaitOperation(grpc::CallbackServerContext* context,
                                          const google::longrunning::WaitOperationRequest* request,
                                          Operation* response) override;

 private:
  // The source of an operation's id; NotFound JOB_NOT_FOUND for an id of no source.
  absl::StatusOr<OperationSource*> SourceOf(std::string_view id) const;
  absl::Status List(const google::longrunning::ListOperationsRequest& request,
                    google::longrunning::ListOperationsResponse& response) const;

  std::vector<OperationSource*> sources_;
  ChangeHub* hub_;
  CallCenter* center_;
};

}  // namespace babai
