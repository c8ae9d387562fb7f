// Models, tokenizer, health, reflection, the address.
#include <set>

#include "grpc/health/v1/health.pb.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "server/log.h"
#include "tests/rpc/rpc_fixture.h"

namespace babai::testing {
namespace {

namespace health = grpc::health::v1;

class HealthTest : public RpcTest {
 protected:
  // The health service by its path alone: that is how a prober of another language calls it.
  std::string Check(const std::string& service) {
    grpc::ClientContext context;
    health::HealthCheckRequest request;
    request.set_service(service);
    health::HealthCheckResponse response;
    const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                           grpc::internal::RpcMethod::NORMAL_RPC);
    const grpc::Status status =
        grpc::internal::BlockingUnaryCall<health::HealthCheckRequest, health::HealthCheckResponse>(
            channel_.get(), method, &context, request, &response);
    if (!status.ok()) return ErrorOf(status).code;
    return health::HealthCheckResponse::ServingStatus_Name(response.status());
  }
};

TEST_F(HealthTest, FollowsModelsAndDrain) {
  EXPECT_EQ(Check(""), "SERVING");
  EXPECT_EQ(Check("m"), "NOT_FOUND");
  v1::LoadModelRequest load;
  load.set_name("m");
  v1::Model model;
  grpc::ClientContext a, b;
  ASSERT_TRUE(models_->LoadModel(&a, load, &model).ok());
  EXPECT_EQ(model.state(), v1::Model::STATE_LOADED);
  Await([&] { return Check("m") == "SERVING"; });
  v1::UnloadModelRequest unload;
  unload.set_name("m");
  ASSERT_TRUE(models_->UnloadModel(&b, unload, &model).ok());
  Await([&] { return Check("m") == "NOT_SERVING"; });
  server_->BeginDrain();
  EXPECT_EQ(Check(""), "NOT_SERVING");
}

TEST_F(RpcTest, ModelsAreListedInPages) {
  v1::ListModelsRequest request;
  request.set_page_size(1);
  std::vector<std::string> names;
  do {
    grpc::ClientContext context;
    v1::ListModelsResponse page;
    ASSERT_TRUE(models_->ListModels(&context, request, &page).ok());
    for (const auto& model : page.models()) {
      names.push_back(model.name());
      EXPECT_TRUE(model.linears().empty());
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(names, (std::vector<std::string>{"m", "other"}));

  grpc::ClientContext context;
  v1::GetModelRequest get;
  get.set_name("m");
  v1::Model model;
  ASSERT_TRUE(models_->GetModel(&context, get, &model).ok());
  EXPECT_EQ(model.linears(0).name(), "blocks.0.q.weight");
  EXPECT_EQ(model.create_time().seconds(), 1704164645);
}

TEST_F(RpcTest, APinnedModelIsNotDeleted) {
  grpc::ClientContext a, b, c, d, e;
  v1::Model model;
  v1::PinModelRequest pin;
  pin.set_name("m");
  ASSERT_TRUE(models_->PinModel(&a, pin, &model).ok());
  EXPECT_TRUE(model.pinned());
  v1::DeleteModelRequest remove;
  remove.set_name("m");
  google::protobuf::Empty empty;
  EXPECT_EQ(ErrorOf(models_->DeleteModel(&b, remove, &empty)),
            (WireError{"FAILED_PRECONDITION", "MODEL_BUSY", "name"}));
  v1::UnpinModelRequest unpin;
  unpin.set_name("m");
  ASSERT_TRUE(models_->UnpinModel(&c, unpin, &model).ok());
  ASSERT_TRUE(models_->DeleteModel(&d, remove, &empty).ok());
  EXPECT_EQ(ErrorOf(models_->DeleteModel(&e, remove, &empty)).reason, "MODEL_NOT_FOUND");
}

TEST_F(RpcTest, WhatIsNotBuiltSaysSo) {
  grpc::ClientContext a, b, c;
  v1::Model model;
  EXPECT_EQ(ErrorOf(models_->SetAlias(&a, {}, &model)).reason, "NOT_IN_THIS_RELEASE");
  lro::Operation operation;
  EXPECT_EQ(ErrorOf(models_->ExportModel(&b, {}, &operation)).code, "UNIMPLEMENTED");
  v1::EstimateQuantizationResponse estimate;
  EXPECT_EQ(ErrorOf(quantization_->EstimateQuantization(&c, {}, &estimate)).reason,
            "NOT_IN_THIS_RELEASE");
}

TEST_F(RpcTest, TokenizerService) {
  grpc::ClientContext a, b, c, d;
  v1::TokenizeRequest tokenize;
  tokenize.set_model("m");
  tokenize.set_text("ab");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(tokenizer_->Tokenize(&a, tokenize, &ids).ok());
  EXPECT_EQ(ids.token_ids_size(), 2);
  v1::DetokenizeRequest detokenize;
  detokenize.set_model("m");
  *detokenize.mutable_token_ids() = ids.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(tokenizer_->Detokenize(&b, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "ab");
  detokenize.add_token_ids(-1);
  EXPECT_EQ(ErrorOf(tokenizer_->Detokenize(&c, detokenize, &text)).field, "token_ids[2]");
  v1::ApplyChatTemplateRequest chat;
  chat.set_model("m");
  v1::ApplyChatTemplateResponse rendered;
  EXPECT_EQ(ErrorOf(tokenizer_->ApplyChatTemplate(&d, chat, &rendered)).field, "messages");
}

TEST_F(RpcTest, ServerInfo) {
  grpc::ClientContext context;
  v1::ServerInfo info;
  ASSERT_TRUE(models_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.version(), "test");
  EXPECT_EQ(info.models(), 2);
  EXPECT_GE(info.recipe_presets_size(), 4);
}

TEST(RpcServerTest, OnlyLoopbackWithoutTheFlag) {
  for (const char* address : {"127.0.0.1:1", "127.8.9.1:1", "localhost:0", "[::1]:5", "unix:/x"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "example.com:1", "127.evil.com:1", ":1",
                              "128.0.0.1:1", "localhost.evil.com:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
  RpcOptions options;
  options.listen = "0.0.0.0:0";
  EXPECT_EQ(RpcServer::Start(options, {}).status().code(), absl::StatusCode::kFailedPrecondition);
  options.listen = "nonsense";
  EXPECT_EQ(RpcServer::Start(options, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RpcTest, ATakenPortIsAnError) {
  RpcOptions options;
  options.listen = server_->address();
  RpcBackends backends{&engine_, &catalog_, &jobs_,
                       [](const QuantizeSpec&) { return absl::OkStatus(); }};
  EXPECT_EQ(RpcServer::Start(options, backends).status().code(), absl::StatusCode::kUnavailable);
}

TEST(LogTest, ACallersTextCanNotForgeALine) {
  EXPECT_EQ(
      FormatLogLine(LogFormat::kText, "T", LogLevel::kInfo, "call",
                    {{"peer", "a b"}, {"id", "x\nT error forged"}, {"n", "7"}, {"empty", ""}}),
      "T info call peer=\"a b\" id=\"x\\u000aT error forged\" n=7\n");
  EXPECT_EQ(FormatLogLine(LogFormat::kJson, "T", LogLevel::kError, "m", {{"k", "\"\\\x01"}}),
            "{\"time\":\"T\",\"level\":\"error\",\"message\":\"m\",\"k\":\"\\\"\\\\\\u0001\"}\n");
}

}  // namespace
}  // namespace babai::testing
