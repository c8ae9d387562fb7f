// A server with fakes behind it on a free port, and stubs to speak to it.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "babai/v1/evaluation.grpc.pb.h"
#include "babai/v1/generation.grpc.pb.h"
#include "babai/v1/models.grpc.pb.h"
#include "babai/v1/quantization.grpc.pb.h"
#include "babai/v1/tokenizer.grpc.pb.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "server/rpc/rpc_server.h"
#include "tests/rpc/fakes.h"

namespace babai::testing {

namespace lro = google::longrunning;

struct WireError {
  std::string code, reason, field;
  double retry_seconds = 0;
  bool operator==(const WireError&) const = default;
};

inline WireError ErrorOf(const grpc::Status& status) {
  WireError error;
  error.code = absl::StatusCodeToString(static_cast<absl::StatusCode>(status.error_code()));
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  for (const auto& detail : details.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&info)) {
      EXPECT_EQ(info.domain(), "babai");
      error.reason = info.reason();
      if (info.metadata().count("field")) error.field = info.metadata().at("field");
    }
    if (detail.UnpackTo(&retry))
      error.retry_seconds = static_cast<double>(retry.retry_delay().seconds());
  }
  return error;
}

class RpcTest : public ::testing::Test {
 protected:
  RpcTest() {
    catalog_.Add("m");
    catalog_.Add("other");
    RpcOptions options;
    options.listen = "127.0.0.1:0";
    options.heartbeat = absl::Milliseconds(50);
    options.facts.version = "test";
    options.on_call = [this](const CallRecord& call) {
      std::lock_guard lock(calls_mutex_);
      calls_.emplace_back(std::string(call.method), call.status.code());
    };
    RpcBackends backends{&engine_, &catalog_, &jobs_,
                         [this](const QuantizeSpec& spec) { return check_; }};
    auto server = RpcServer::Start(options, backends);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials());
    generation_ = v1::GenerationService::NewStub(channel_);
    quantization_ = v1::QuantizationService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
    tokenizer_ = v1::TokenizerService::NewStub(channel_);
    evaluation_ = v1::EvaluationService::NewStub(channel_);
    operations_ = lro::Operations::NewStub(channel_);
  }

  static v1::GenerateRequest Prompt(const std::string& text = "abc") {
    v1::GenerateRequest request;
    request.set_model("m");
    request.set_text(text);
    return request;
  }

  struct Answer {
    std::vector<v1::GenerateResponse> events;
    std::string text;
    int64_t tokens = 0;
    grpc::Status status;
  };

  Answer Read(grpc::ClientReader<v1::GenerateResponse>& reader) {
    Answer answer;
    v1::GenerateResponse event;
    while (reader.Read(&event)) {
      answer.events.push_back(event);
      answer.text += event.delta().text();
      answer.tokens += event.delta().token_ids_size();
    }
    answer.status = reader.Finish();
    return answer;
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Read(*generation_->Generate(&context, request));
  }

  // Waits for what must come; the test's own time limit is the only one.
  template <class Condition>
  static void Await(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }

  v1::QuantizeRequest QuantizeM() {
    v1::QuantizeRequest request;
    request.set_source_uri("file:///models/m");
    request.set_name("new");
    return request;
  }

  lro::Operation Submit() {
    grpc::ClientContext context;
    lro::Operation operation;
    const grpc::Status status = quantization_->Quantize(&context, QuantizeM(), &operation);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return operation;
  }

  // Moves a job and tells the server, as the job manager would.
  void Move(const std::string& operation, const std::function<void(Job&)>& change) {
    const std::string id = operation.substr(operation.find('/') + 1);
    ASSERT_TRUE(jobs_.Change(id, change).ok());
    server_->OnJobChange(id);
  }

  absl::Status check_;
  FakeCatalog catalog_;
  FakeEngine engine_{&catalog_};
  FakeJobs jobs_;
  std::mutex calls_mutex_;
  std::vector<std::pair<std::string, absl::StatusCode>> calls_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::QuantizationService::Stub> quantization_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<v1::TokenizerService::Stub> tokenizer_;
  std::unique_ptr<v1::EvaluationService::Stub> evaluation_;
  std::unique_ptr<lro::Operations::Stub> operations_;
};

}  // namespace babai::testing
