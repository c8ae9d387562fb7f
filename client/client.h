// The babai client library: one object a server, typed calls, errors with code, reason and field.
//
//   babai::client::Client server("127.0.0.1:50051");
//   auto model = server.GetModel("smollm2-w4");
//   if (!model.ok()) std::cerr << babai::client::ToText(model.status()) << "\n";
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "babai/v1/evaluation.grpc.pb.h"
#include "babai/v1/generation.grpc.pb.h"
#include "babai/v1/models.grpc.pb.h"
#include "babai/v1/quantization.grpc.pb.h"
#include "babai/v1/tokenizer.grpc.pb.h"
#include "client/refusal.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "grpcpp/channel.h"

namespace babai::client {

using google::longrunning::Operation;

// Stops a call from another thread. Thread-safe.
class Canceller {
 public:
  void Cancel();

 private:
  friend class Client;
  void Attach(grpc::ClientContext* context);  // null: the call is over

  std::mutex mutex_;
  grpc::ClientContext* context_ = nullptr;
  bool cancelled_ = false;
};

// Thread-safe. A server that can not be reached is Unavailable, from the first call on.
class Client {
 public:
  explicit Client(const std::string& address);

  absl::StatusOr<Operation> Quantize(const v1::QuantizeRequest& request);
  // Calls `on_message` for every message; returns when the job is done. The status is the call's,
  // not the job's. A lost connection is made again, from the last revision on.
  absl::Status Watch(const std::string& id,
                     const std::function<void(const v1::WatchQuantizationResponse&)>& on_message,
                     Canceller* canceller = nullptr);

  // Ids with or without "operations/".
  absl::StatusOr<Operation> GetOperation(const std::string& id);
  absl::StatusOr<std::vector<Operation>> ListOperations();  // all pages
  absl::Status CancelOperation(const std::string& id);
  absl::Status DeleteOperation(const std::string& id);

  absl::StatusOr<v1::Model> GetModel(const std::string& name);
  absl::StatusOr<std::vector<v1::Model>> ListModels();  // all pages
  absl::StatusOr<v1::Model> LoadModel(const std::string& name);
  absl::StatusOr<v1::Model> UnloadModel(const std::string& name);
  absl::StatusOr<v1::Model> PinModel(const std::string& name);
  absl::StatusOr<v1::Model> UnpinModel(const std::string& name);
  absl::Status DeleteModel(const std::string& name);
  absl::StatusOr<v1::ServerInfo> GetServerInfo();

  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<void(const v1::GenerateResponse&)>& on_event,
                        Canceller* canceller = nullptr);
  absl::StatusOr<v1::GenerateResult> GenerateOnce(const v1::GenerateRequest& request,
                                                  Canceller* canceller = nullptr);

  absl::StatusOr<Operation> Evaluate(const v1::EvaluateRequest& request);
  absl::StatusOr<std::vector<int32_t>> Tokenize(const v1::TokenizeRequest& request);

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::QuantizationService::Stub> quantization_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::TokenizerService::Stub> tokenizer_;
  std::unique_ptr<v1::EvaluationService::Stub> evaluation_;
  std::unique_ptr<google::longrunning::Operations::Stub> operations_;
};

// The answer of an operation that is done: its response, or its error.
template <class Response>
absl::StatusOr<Response> ResultOf(const Operation& operation) {
  if (operation.has_error()) return FromProto(operation.error());
  Response response;
  if (!operation.has_response() || !operation.response().UnpackTo(&response)) {
    return absl::InternalError("the operation's response has another type");
  }
  return response;
}

}  // namespace babai::client
