#include <limits>

#include "tests/rpc/rpc_fixture.h"

namespace babai::testing {
namespace {

void Ready(Job& job) {
  job.progress.state = JobState::kReady;
  job.progress.fraction = 1;
}

TEST_F(RpcTest, QuantizeBecomesAnOperationThatEndsWithAModel) {
  const lro::Operation submitted = Submit();
  EXPECT_EQ(submitted.name(), "operations/job-0000000000000001");
  EXPECT_FALSE(submitted.done());
  catalog_.Add("new");
  Move(submitted.name(), Ready);

  grpc::ClientContext context;
  lro::GetOperationRequest get;
  get.set_name(submitted.name());
  lro::Operation operation;
  ASSERT_TRUE(operations_->GetOperation(&context, get, &operation).ok());
  EXPECT_TRUE(operation.done());
  v1::Model model;
  ASSERT_TRUE(operation.response().UnpackTo(&model));
  EXPECT_EQ(model.name(), "new");
  EXPECT_EQ(model.bits_per_weight(), 4.5);
  v1::QuantizeMetadata metadata;
  ASSERT_TRUE(operation.metadata().UnpackTo(&metadata));
  EXPECT_EQ(metadata.state(), v1::QuantizeMetadata::STATE_READY);
  EXPECT_EQ(metadata.recipe().preset(), "babai");
}

TEST_F(RpcTest, AFailedJobIsAnOperationWithItsError) {
  const lro::Operation submitted = Submit();
  Move(submitted.name(), [](Job& job) {
    job.progress.state = JobState::kFailed;
    job.error = Refuse(absl::StatusCode::kInvalidArgument, reason::kNonFiniteWeights,
                       "model.safetensors", "holds a NaN");
  });
  grpc::ClientContext context;
  lro::GetOperationRequest get;
  get.set_name(submitted.name());
  lro::Operation operation;
  ASSERT_TRUE(operations_->GetOperation(&context, get, &operation).ok());
  EXPECT_EQ(operation.error().code(), static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(operation.error().details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "NON_FINITE_WEIGHTS");
  EXPECT_EQ(info.metadata().at("field"), "model.safetensors");
}

TEST_F(RpcTest, WaitReturnsAtTheEndOrAtItsTimeout) {
  const lro::Operation submitted = Submit();
  lro::WaitOperationRequest wait;
  wait.set_name(submitted.name());
  wait.mutable_timeout()->set_nanos(30'000'000);
  lro::Operation operation;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(operations_->WaitOperation(&context, wait, &operation).ok());
    EXPECT_FALSE(operation.done());
  }
  wait.clear_timeout();
  std::thread waiter([&] {
    grpc::ClientContext context;
    EXPECT_TRUE(operations_->WaitOperation(&context, wait, &operation).ok());
  });
  Move(submitted.name(), Ready);
  waiter.join();
  EXPECT_TRUE(operation.done());

  grpc::ClientContext context;
  wait.mutable_timeout()->set_seconds(-1);
  EXPECT_EQ(ErrorOf(operations_->WaitOperation(&context, wait, &operation)).field, "timeout");
}

TEST_F(RpcTest, CancelAndDelete) {
  const lro::Operation submitted = Submit();
  lro::CancelOperationRequest cancel;
  cancel.set_name(submitted.name());
  google::protobuf::Empty empty;
  grpc::ClientContext first, second, third;
  ASSERT_TRUE(operations_->CancelOperation(&first, cancel, &empty).ok());
  lro::DeleteOperationRequest remove;
  remove.set_name(submitted.name());
  ASSERT_TRUE(operations_->DeleteOperation(&second, remove, &empty).ok());
  lro::GetOperationRequest get;
  get.set_name(submitted.name());
  lro::Operation operation;
  EXPECT_EQ(ErrorOf(operations_->GetOperation(&third, get, &operation)).reason, "JOB_NOT_FOUND");
}

TEST_F(RpcTest, ListPagesThroughJobsAndEvaluations) {
  std::set<std::string> want;
  for (int i = 0; i < 5; ++i) want.insert(Submit().name());
  for (int i = 0; i < 3; ++i) {
    grpc::ClientContext context;
    v1::EvaluateRequest request;
    request.set_model("m");
    request.set_text("hello");
    lro::Operation operation;
    ASSERT_TRUE(evaluation_->Evaluate(&context, request, &operation).ok());
    want.insert(operation.name());
  }
  std::set<std::string> got;
  lro::ListOperationsRequest list;
  list.set_page_size(2);
  int pages = 0;
  do {
    grpc::ClientContext context;
    lro::ListOperationsResponse page;
    ASSERT_TRUE(operations_->ListOperations(&context, list, &page).ok());
    EXPECT_LE(page.operations_size(), 2);
    for (const auto& operation : page.operations()) {
      EXPECT_TRUE(got.insert(operation.name()).second) << "listed twice";
    }
    list.set_page_token(page.next_page_token());
    ++pages;
  } while (!list.page_token().empty());
  EXPECT_EQ(got, want);
  EXPECT_GE(pages, 4);
}

TEST_F(RpcTest, BadOperationCalls) {
  const auto list = [&](auto edit) {
    grpc::ClientContext context;
    lro::ListOperationsRequest request;
    edit(request);
    lro::ListOperationsResponse response;
    return ErrorOf(operations_->ListOperations(&context, request, &response));
  };
  EXPECT_EQ(list([](auto& r) { r.set_page_size(-1); }).field, "page_size");
  EXPECT_EQ(list([](auto& r) { r.set_page_size(1001); }).field, "page_size");
  EXPECT_EQ(list([](auto& r) { r.set_page_token("x"); }).field, "page_token");
  EXPECT_EQ(list([](auto& r) { r.set_page_token("7:"); }).field, "page_token");
  EXPECT_EQ(list([](auto& r) { r.set_filter("done"); }).reason, "NOT_IN_THIS_RELEASE");
  EXPECT_EQ(list([](auto& r) { r.set_name("jobs"); }).field, "name");
  const auto get = [&](const std::string& name) {
    grpc::ClientContext context;
    lro::GetOperationRequest request;
    request.set_name(name);
    lro::Operation operation;
    return ErrorOf(operations_->GetOperation(&context, request, &operation));
  };
  EXPECT_EQ(get("").field, "name");
  EXPECT_EQ(get("operations/../x").field, "name");
  EXPECT_EQ(get("operations/" + std::string(100, 'a')).field, "name");
  EXPECT_EQ(get("operations/nothing").reason, "JOB_NOT_FOUND");
  EXPECT_EQ(get("operations/eval-99").reason, "JOB_NOT_FOUND");
  EXPECT_EQ(get("operations/eval-").reason, "JOB_NOT_FOUND");
}

TEST_F(RpcTest, WatchSendsEachLinearOnceAndEndsWithTheJob) {
  const lro::Operation submitted = Submit();
  v1::WatchQuantizationRequest watch;
  watch.set_name(submitted.name());
  grpc::ClientContext context;
  const auto reader = quantization_->WatchQuantization(&context, watch);
  v1::WatchQuantizationResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.metadata().revision(), 1);

  std::vector<std::string> linears;
  int64_t revision = 1;
  for (int i = 0; i < 5; ++i) {
    Move(submitted.name(), [&](Job& job) {
      job.progress.state = JobState::kQuantizing;
      LinearReport linear;
      linear.name = absl::StrCat("blocks.", i);
      job.linears.push_back(linear);
    });
    do {
      ASSERT_TRUE(reader->Read(&message));
    } while (message.heartbeat());
    EXPECT_GT(message.metadata().revision(), revision);
    revision = message.metadata().revision();
    for (const auto& linear : message.metadata().linears()) linears.push_back(linear.name());
  }
  EXPECT_EQ(linears,
            (std::vector<std::string>{"blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"}));
  Move(submitted.name(), Ready);
  do {
    ASSERT_TRUE(reader->Read(&message));
  } while (message.heartbeat());
  EXPECT_TRUE(message.done());
  EXPECT_FALSE(message.has_error());
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(RpcTest, WatchKeepsAQuietConnectionAlive) {
  const lro::Operation submitted = Submit();
  v1::WatchQuantizationRequest watch;
  watch.set_name(submitted.name());
  watch.set_after_revision(1);
  grpc::ClientContext context;
  const auto reader = quantization_->WatchQuantization(&context, watch);
  v1::WatchQuantizationResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_TRUE(message.heartbeat());
  EXPECT_FALSE(message.done());
  context.TryCancel();
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(RpcTest, WatchOfAnEndedJobSaysSoAtOnce) {
  const lro::Operation submitted = Submit();
  Move(submitted.name(), [](Job& job) { job.progress.state = JobState::kCancelled; });
  v1::WatchQuantizationRequest watch;
  watch.set_name(submitted.name());
  watch.set_after_revision(1000);
  grpc::ClientContext context;
  const auto reader = quantization_->WatchQuantization(&context, watch);
  v1::WatchQuantizationResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_TRUE(message.done());
  EXPECT_EQ(message.error().code(), static_cast<int>(grpc::StatusCode::CANCELLED));
  EXPECT_FALSE(reader->Read(&message));
}

TEST_F(RpcTest, WatchOfAnUnknownJobIsRefused) {
  v1::WatchQuantizationRequest watch;
  watch.set_name("operations/job-ffffffffffffffff");
  grpc::ClientContext context;
  const auto reader = quantization_->WatchQuantization(&context, watch);
  v1::WatchQuantizationResponse message;
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_EQ(ErrorOf(reader->Finish()).reason, "JOB_NOT_FOUND");
}

TEST_F(RpcTest, ARetryWithItsRequestIdFindsItsJobWhateverTheChecksSayNow) {
  v1::QuantizeRequest request = QuantizeM();
  request.set_request_id("retry-1");
  lro::Operation first, second;
  grpc::ClientContext a, b, c;
  ASSERT_TRUE(quantization_->Quantize(&a, request, &first).ok());
  check_ = Refuse(absl::StatusCode::kAlreadyExists, reason::kModelExists, "name", "exists");
  ASSERT_TRUE(quantization_->Quantize(&b, request, &second).ok());
  EXPECT_EQ(first.name(), second.name());
  request.set_request_id("another");
  EXPECT_EQ(ErrorOf(quantization_->Quantize(&c, request, &second)),
            (WireError{"ALREADY_EXISTS", "MODEL_EXISTS", "name"}));
}

TEST_F(RpcTest, BadQuantizeRequestsNameTheirField) {
  using Edit = std::function<void(v1::QuantizeRequest&)>;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::pair<Edit, std::string>> cases = {
      {[](auto& r) { r.set_name(""); }, "name"},
      {[](auto& r) { r.set_name("A B"); }, "name"},
      {[](auto& r) { r.set_source_uri(""); }, "source_uri"},
      {[](auto& r) { r.set_source_uri(std::string(5000, 'x')); }, "source_uri"},
      {[](auto& r) { r.set_request_id("no spaces"); }, "request_id"},
      {[](auto& r) { r.mutable_recipe()->set_preset("magic"); }, "recipe.preset"},
      {[](auto& r) { r.mutable_recipe()->set_bits(1); }, "recipe.bits"},
      {[](auto& r) { r.mutable_recipe()->set_bits(9); }, "recipe.bits"},
      {[](auto& r) { r.mutable_recipe()->set_group_size(48); }, "recipe.group_size"},
      {[](auto& r) { r.mutable_recipe()->set_embedding_bits(5); }, "recipe.embedding_bits"},
      {[=](auto& r) { r.mutable_recipe()->set_damping(nan); }, "recipe.damping"},
      {[](auto& r) { r.mutable_recipe()->set_damping(-0.1); }, "recipe.damping"},
      {[](auto& r) { r.mutable_recipe()->set_order(static_cast<v1::Recipe::Order>(77)); },
       "recipe.order"},
      {[](auto& r) { r.mutable_recipe()->set_solver(static_cast<v1::Recipe::Solver>(77)); },
       "recipe.solver"},
      {[](auto& r) { r.mutable_calibration()->set_samples(0); }, "calibration.samples"},
      {[](auto& r) { r.mutable_calibration()->set_samples(-3); }, "calibration.samples"},
      {[](auto& r) { r.mutable_calibration()->set_samples(5000); }, "calibration.samples"},
      {[](auto& r) { r.mutable_calibration()->set_length(15); }, "calibration.length"},
      {[](auto& r) { r.mutable_calibration()->set_length(INT32_MAX); }, "calibration.length"},
      {[](auto& r) { r.mutable_calibration()->set_held_out(-1); }, "calibration.held_out"},
      {[](auto& r) { r.mutable_calibration()->mutable_texts(); }, "calibration.texts"},
      {[](auto& r) { r.mutable_calibration()->mutable_token_ids(); }, "calibration.token_ids"},
      {[](auto& r) { r.mutable_calibration()->mutable_token_ids()->add_sequences()->add_ids(-1); },
       "calibration.token_ids"},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    v1::QuantizeRequest request = QuantizeM();
    cases[i].first(request);
    grpc::ClientContext context;
    lro::Operation operation;
    const grpc::Status status = quantization_->Quantize(&context, request, &operation);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "case " << i;
    EXPECT_EQ(ErrorOf(status).field, cases[i].second) << "case " << i << status.error_message();
  }
}

TEST_F(RpcTest, EvaluationRunsAndIsCancelled) {
  v1::EvaluateRequest request;
  request.set_model("m");
  request.set_reference("other");
  for (int i = 0; i < 200; ++i) request.mutable_token_ids()->add_ids(i);
  request.set_context(100);
  lro::Operation operation;
  grpc::ClientContext a, b, c;
  ASSERT_TRUE(evaluation_->Evaluate(&a, request, &operation).ok());
  lro::WaitOperationRequest wait;
  wait.set_name(operation.name());
  ASSERT_TRUE(operations_->WaitOperation(&b, wait, &operation).ok());
  v1::EvaluateResult result;
  ASSERT_TRUE(operation.response().UnpackTo(&result));
  EXPECT_EQ(result.perplexity(), 2);
  EXPECT_EQ(result.tokens(), 200);
  EXPECT_EQ(result.comparison().reference(), "other");

  engine_.endless = true;
  ASSERT_TRUE(evaluation_->Evaluate(&c, request, &operation).ok());
  lro::CancelOperationRequest cancel;
  cancel.set_name(operation.name());
  wait.set_name(operation.name());
  google::protobuf::Empty empty;
  grpc::ClientContext d, e;
  ASSERT_TRUE(operations_->CancelOperation(&d, cancel, &empty).ok());
  ASSERT_TRUE(operations_->WaitOperation(&e, wait, &operation).ok());
  EXPECT_EQ(operation.error().code(), static_cast<int>(grpc::StatusCode::CANCELLED));
}

TEST_F(RpcTest, BadEvaluations) {
  using Edit = std::function<void(v1::EvaluateRequest&)>;
  const std::vector<std::pair<Edit, std::string>> cases = {
      {[](auto& r) { r.set_model("nobody"); }, "NOT_FOUND model"},
      {[](auto& r) { r.set_reference("nobody"); }, "NOT_FOUND reference"},
      {[](auto& r) { r.clear_text(); }, "INVALID_ARGUMENT input"},
      {[](auto& r) { r.set_text(""); }, "INVALID_ARGUMENT text"},
      {[](auto& r) { r.set_context(1); }, "INVALID_ARGUMENT context"},
      {[](auto& r) { r.set_context(129); }, "INVALID_ARGUMENT context"},
      {[](auto& r) { r.set_max_windows(-1); }, "INVALID_ARGUMENT max_windows"},
      {[](auto& r) { r.mutable_token_ids()->add_ids(1); }, "INVALID_ARGUMENT token_ids.ids"},
      {[](auto& r) { r.set_numerics(static_cast<v1::EvaluateRequest::Numerics>(9)); },
       "INVALID_ARGUMENT numerics"},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    v1::EvaluateRequest request;
    request.set_model("m");
    request.set_text("text");
    cases[i].first(request);
    grpc::ClientContext context;
    lro::Operation operation;
    const WireError error = ErrorOf(evaluation_->Evaluate(&context, request, &operation));
    EXPECT_EQ(error.code + " " + error.field, cases[i].second) << "case " << i;
  }
}

}  // namespace
}  // namespace babai::testing
