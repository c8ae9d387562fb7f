#include "client/client.h"

#include <chrono>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace babai::client {
namespace {

constexpr int kReconnects = 5;

// One unary call, as a StatusOr.
template <class Response, class Stub, class Method, class Request>
absl::StatusOr<Response> Call(Stub& stub, Method method, const Request& request) {
  grpc::ClientContext context;
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

template <class Request, class Stub, class Method>
absl::StatusOr<v1::Model> CallByName(Stub& stub, Method method, const std::string& name) {
  Request request;
  request.set_name(name);
  return Call<v1::Model>(stub, method, request);
}

std::string OperationName(const std::string& id) {
  return absl::StartsWith(id, "operations/") ? id : absl::StrCat("operations/", id);
}

}  // namespace

void Canceller::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

void Canceller::Attach(grpc::ClientContext* context) {
  std::lock_guard lock(mutex_);
  context_ = context;
  if (context != nullptr && cancelled_) context->TryCancel();
}

Client::Client(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  quantization_ = v1::QuantizationService::NewStub(channel_);
  generation_ = v1::GenerationService::NewStub(channel_);
  models_ = v1::ModelService::NewStub(channel_);
  tokenizer_ = v1::TokenizerService::NewStub(channel_);
  evaluation_ = v1::EvaluationService::NewStub(channel_);
  operations_ = google::longrunning::Operations::NewStub(channel_);
}

absl::StatusOr<Operation> Client::Quantize(const v1::QuantizeRequest& request) {
  return Call<Operation>(*quantization_, &v1::QuantizationService::Stub::Quantize, request);
}

absl::Status Client::Watch(
    const std::string& id,
    const std::function<void(const v1::WatchQuantizationResponse&)>& on_message,
    Canceller* canceller) {
  v1::WatchQuantizationRequest request;
  request.set_name(OperationName(id));
  for (int lost = 0;; ++lost) {
    grpc::ClientContext context;
    if (canceller) canceller->Attach(&context);
    const auto reader = quantization_->WatchQuantization(&context, request);
    v1::WatchQuantizationResponse message;
    bool done = false;
    while (reader->Read(&message)) {
      lost = 0;
      done = message.done();
      request.set_after_revision(message.metadata().revision());
      on_message(message);
    }
    const grpc::Status status = reader->Finish();
    if (canceller) canceller->Attach(nullptr);
    if (done) return absl::OkStatus();
    if (status.ok()) return absl::InternalError("the stream ended before the job");
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE || lost >= kReconnects) {
      return FromGrpc(status);
    }
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

absl::StatusOr<Operation> Client::GetOperation(const std::string& id) {
  google::longrunning::GetOperationRequest request;
  request.set_name(OperationName(id));
  return Call<Operation>(*operations_, &google::longrunning::Operations::Stub::GetOperation,
                         request);
}

absl::StatusOr<std::vector<Operation>> Client::ListOperations() {
  google::longrunning::ListOperationsRequest request;
  std::vector<Operation> all;
  do {
    auto page = Call<google::longrunning::ListOperationsResponse>(
        *operations_, &google::longrunning::Operations::Stub::ListOperations, request);
    if (!page.ok()) return page.status();
    all.insert(all.end(), page->operations().begin(), page->operations().end());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return all;
}

absl::Status Client::CancelOperation(const std::string& id) {
  google::longrunning::CancelOperationRequest request;
  request.set_name(OperationName(id));
  return Call<google::protobuf::Empty>(
             *operations_, &google::longrunning::Operations::Stub::CancelOperation, request)
      .status();
}

absl::Status Client::DeleteOperation(const std::string& id) {
  google::longrunning::DeleteOperationRequest request;
  request.set_name(OperationName(id));
  return Call<google::protobuf::Empty>(
             *operations_, &google::longrunning::Operations::Stub::DeleteOperation, request)
      .status();
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) {
  return CallByName<v1::GetModelRequest>(*models_, &v1::ModelService::Stub::GetModel, name);
}

absl::StatusOr<std::vector<v1::Model>> Client::ListModels() {
  v1::ListModelsRequest request;
  std::vector<v1::Model> all;
  do {
    auto page =
        Call<v1::ListModelsResponse>(*models_, &v1::ModelService::Stub::ListModels, request);
    if (!page.ok()) return page.status();
    all.insert(all.end(), page->models().begin(), page->models().end());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return all;
}

absl::StatusOr<v1::Model> Client::LoadModel(const std::string& name) {
  return CallByName<v1::LoadModelRequest>(*models_, &v1::ModelService::Stub::LoadModel, name);
}

absl::StatusOr<v1::Model> Client::UnloadModel(const std::string& name) {
  return CallByName<v1::UnloadModelRequest>(*models_, &v1::ModelService::Stub::UnloadModel, name);
}

absl::StatusOr<v1::Model> Client::PinModel(const std::string& name) {
  return CallByName<v1::PinModelRequest>(*models_, &v1::ModelService::Stub::PinModel, name);
}

absl::StatusOr<v1::Model> Client::UnpinModel(const std::string& name) {
  return CallByName<v1::UnpinModelRequest>(*models_, &v1::ModelService::Stub::UnpinModel, name);
}

absl::Status Client::DeleteModel(const std::string& name) {
  v1::DeleteModelRequest request;
  request.set_name(name);
  return Call<google::protobuf::Empty>(*models_, &v1::ModelService::Stub::DeleteModel, request)
      .status();
}

absl::StatusOr<v1::ServerInfo> Client::GetServerInfo() {
  return Call<v1::ServerInfo>(*models_, &v1::ModelService::Stub::GetServerInfo,
                              v1::GetServerInfoRequest());
}

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              const std::function<void(const v1::GenerateResponse&)>& on_event,
                              Canceller* canceller) {
  grpc::ClientContext context;
  if (canceller) canceller->Attach(&context);
  const auto reader = generation_->Generate(&context, request);
  v1::GenerateResponse event;
  while (reader->Read(&event)) on_event(event);
  const grpc::Status status = reader->Finish();
  if (canceller) canceller->Attach(nullptr);
  return FromGrpc(status);
}

absl::StatusOr<v1::GenerateResult> Client::GenerateOnce(const v1::GenerateRequest& request,
                                                        Canceller* canceller) {
  grpc::ClientContext context;
  if (canceller) canceller->Attach(&context);
  v1::GenerateResult result;
  const grpc::Status status = generation_->GenerateOnce(&context, request, &result);
  if (canceller) canceller->Attach(nullptr);
  if (!status.ok()) return FromGrpc(status);
  return result;
}

absl::StatusOr<Operation> Client::Evaluate(const v1::EvaluateRequest& request) {
  return Call<Operation>(*evaluation_, &v1::EvaluationService::Stub::Evaluate, request);
}

absl::StatusOr<std::vector<int32_t>> Client::Tokenize(const v1::TokenizeRequest& request) {
  auto response =
      Call<v1::TokenizeResponse>(*tokenizer_, &v1::TokenizerService::Stub::Tokenize, request);
  if (!response.ok()) return response.status();
  return std::vector<int32_t>(response->token_ids().begin(), response->token_ids().end());
}

}  // namespace babai::client
