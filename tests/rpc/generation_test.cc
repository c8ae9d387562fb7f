#include <cmath>
#include <limits>

#include "tests/rpc/rpc_fixture.h"

namespace babai::testing {
namespace {

TEST_F(RpcTest, StreamsPromptInfoThenDeltasThenFinish) {
  engine_.tokens = 5;
  v1::GenerateRequest request = Prompt();
  request.mutable_sampling()->set_seed(42);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_TRUE(answer.events.front().has_prompt_info());
  EXPECT_EQ(answer.events.front().prompt_info().prompt_tokens(), 3);
  EXPECT_EQ(answer.events.front().prompt_info().seed(), 42u);
  ASSERT_TRUE(answer.events.back().has_finish());
  EXPECT_EQ(answer.events.back().finish().usage().completion_tokens(), 5);
  EXPECT_EQ(answer.events.back().finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.text, "aabbccddee");
  EXPECT_EQ(answer.tokens, 5);
  for (size_t i = 1; i + 1 < answer.events.size(); ++i) {
    EXPECT_TRUE(answer.events[i].has_delta());
  }
}

TEST_F(RpcTest, EveryFieldReachesTheEngine) {
  v1::GenerateRequest request;
  request.set_model("m");
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  auto& sampling = *request.mutable_sampling();
  sampling.set_temperature(0);
  sampling.set_top_k(7);
  sampling.set_top_p(0.5);
  sampling.set_min_p(0.25);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(1);
  sampling.set_repetition_penalty(2);
  (*sampling.mutable_logit_bias())[9] = -5;
  auto& stopping = *request.mutable_stopping();
  stopping.set_max_tokens(11);
  stopping.add_stop("end");
  stopping.add_stop_token_ids(13);
  stopping.set_ignore_eos(true);
  stopping.set_include_stop(true);
  request.mutable_output()->set_logprobs(true);
  request.mutable_output()->set_skip_special_tokens(false);
  ASSERT_TRUE(Generate(request).status.ok());

  const GenerateRequest got = engine_.last_request();
  const std::string prompt = "user:hi\nassistant:";
  EXPECT_EQ(std::string(got.prompt.begin(), got.prompt.end()), prompt);
  EXPECT_EQ(got.sampling.temperature, 0);
  EXPECT_EQ(got.sampling.top_k, 7);
  EXPECT_EQ(got.sampling.top_p, 0.5f);
  EXPECT_EQ(got.sampling.min_p, 0.25f);
  EXPECT_EQ(got.sampling.presence_penalty, -1);
  EXPECT_EQ(got.sampling.frequency_penalty, 1);
  EXPECT_EQ(got.sampling.repetition_penalty, 2);
  EXPECT_EQ(got.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{9, -5}}));
  EXPECT_EQ(got.max_tokens, 11);
  EXPECT_EQ(got.stop, std::vector<std::string>{"end"});
  EXPECT_EQ(got.stop_token_ids, std::vector<int32_t>{13});
  EXPECT_TRUE(got.ignore_eos);
  EXPECT_TRUE(got.include_stop);
  EXPECT_TRUE(got.logprobs);
  EXPECT_FALSE(got.skip_special_tokens);
}

TEST_F(RpcTest, GenerateOnceCollectsTheAnswer) {
  grpc::ClientContext context;
  v1::GenerateResult result;
  ASSERT_TRUE(generation_->GenerateOnce(&context, Prompt(), &result).ok());
  EXPECT_EQ(result.text(), "aabbcc");
  EXPECT_EQ(result.token_ids_size(), 3);
  EXPECT_EQ(result.finish().usage().prompt_tokens(), 3);
  EXPECT_EQ(result.prompt_info().seed(), result.finish().seed());
}

TEST_F(RpcTest, BadGenerateRequestsNameTheirField) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  using Edit = std::function<void(v1::GenerateRequest&)>;
  const auto sampling = [](auto edit) {
    return [edit](v1::GenerateRequest& r) { edit(*r.mutable_sampling()); };
  };
  const auto stopping = [](auto edit) {
    return [edit](v1::GenerateRequest& r) { edit(*r.mutable_stopping()); };
  };
  struct Case {
    Edit edit;
    std::string code, reason, field;
  };
  const std::string bad = "INVALID_ARGUMENT", field = "INVALID_FIELD", none = "UNIMPLEMENTED",
                    later = "NOT_IN_THIS_RELEASE";
  std::vector<Case> cases = {
      {[](auto& r) { r.set_model(""); }, bad, field, "model"},
      {[](auto& r) { r.set_model("../m"); }, bad, field, "model"},
      {[](auto& r) { r.set_model("nobody"); }, "NOT_FOUND", "MODEL_NOT_FOUND", "model"},
      {[](auto& r) { r.clear_text(); }, bad, field, "prompt"},
      {[](auto& r) { r.set_text(""); }, bad, field, "text"},
      {[](auto& r) { r.set_text(std::string((1 << 20) + 1, 'x')); }, bad, field, "text"},
      {[](auto& r) { r.mutable_token_ids(); }, bad, field, "token_ids.ids"},
      {[](auto& r) { r.mutable_token_ids()->add_ids(-1); }, bad, field, "token_ids.ids[0]"},
      {[](auto& r) { r.mutable_token_ids()->add_ids(256); }, bad, field, "token_ids.ids[0]"},
      {[](auto& r) { r.mutable_chat(); }, bad, field, "chat.messages"},
      {[](auto& r) { r.mutable_chat()->add_messages(); }, bad, field, "chat.messages[0].role"},
      {[](auto& r) {
         r.mutable_token_ids()->add_ids(1);
         r.set_add_special_tokens(false);
       },
       bad, field, "add_special_tokens"},
      {[](auto& r) { r.set_request_id("a b"); }, bad, field, "request_id"},
      {[](auto& r) { r.set_request_id(std::string(65, 'x')); }, bad, field, "request_id"},
      {stopping([](auto& s) { s.set_max_tokens(0); }), bad, field, "stopping.max_tokens"},
      {stopping([](auto& s) { s.set_max_tokens(INT64_MIN); }), bad, field, "stopping.max_tokens"},
      {stopping([](auto& s) { s.set_min_tokens(-1); }), bad, field, "stopping.min_tokens"},
      {stopping([](auto& s) { s.set_min_tokens(1); }), none, later, "stopping.min_tokens"},
      {stopping([](auto& s) { s.add_stop(""); }), bad, field, "stopping.stop[0]"},
      {stopping([](auto& s) { s.add_stop(std::string(65, 'x')); }), bad, field, "stopping.stop[0]"},
      {stopping([](auto& s) {
         for (int i = 0; i < 17; ++i) s.add_stop("x");
       }),
       bad, field, "stopping.stop"},
      {stopping([](auto& s) { s.add_stop_token_ids(256); }), bad, field,
       "stopping.stop_token_ids[0]"},
      {stopping([](auto& s) {
         for (int i = 0; i < 65; ++i) s.add_stop_token_ids(i);
       }),
       bad, field, "stopping.stop_token_ids"},
      {[](auto& r) { r.mutable_output()->set_top_logprobs(21); }, bad, field,
       "output.top_logprobs"},
      {[](auto& r) { r.mutable_output()->set_top_logprobs(5); }, none, later,
       "output.top_logprobs"},
      {[](auto& r) { r.mutable_output()->set_prompt_logprobs(true); }, none, later,
       "output.prompt_logprobs"},
      {[](auto& r) { r.set_json_schema("{}"); }, none, later, "json_schema"},
      {[](auto& r) { r.set_regex("a+"); }, none, later, "regex"},
      {[](auto& r) { r.set_grammar("x"); }, none, later, "grammar"},
      {[](auto& r) { r.set_num_sequences(0); }, bad, field, "num_sequences"},
      {[](auto& r) { r.set_num_sequences(9); }, bad, field, "num_sequences"},
      {[](auto& r) { r.set_num_sequences(2); }, none, later, "num_sequences"},
      {sampling([](auto& s) {
         for (int i = 0; i < 1025; ++i) (*s.mutable_logit_bias())[i] = 0;
       }),
       bad, field, "sampling.logit_bias"},
  };
  for (const float value : {kNan, kInf, -kInf, -0.5f, 1e30f}) {
    cases.push_back({sampling([value](auto& s) { s.set_temperature(value); }), bad, field,
                     "sampling.temperature"});
  }
  for (const float value : {kNan, 0.0f, -1.0f, 1.5f, kInf}) {
    cases.push_back(
        {sampling([value](auto& s) { s.set_top_p(value); }), bad, field, "sampling.top_p"});
  }
  for (const float value : {kNan, -0.1f, 1.1f}) {
    cases.push_back(
        {sampling([value](auto& s) { s.set_min_p(value); }), bad, field, "sampling.min_p"});
  }
  for (const int value : {-1, INT32_MIN}) {
    cases.push_back(
        {sampling([value](auto& s) { s.set_top_k(value); }), bad, field, "sampling.top_k"});
  }
  for (const float value : {kNan, 2.5f, -2.5f}) {
    cases.push_back({sampling([value](auto& s) { s.set_presence_penalty(value); }), bad, field,
                     "sampling.presence_penalty"});
    cases.push_back({sampling([value](auto& s) { s.set_frequency_penalty(value); }), bad, field,
                     "sampling.frequency_penalty"});
  }
  for (const float value : {kNan, 0.0f, -1.0f, 11.0f}) {
    cases.push_back({sampling([value](auto& s) { s.set_repetition_penalty(value); }), bad, field,
                     "sampling.repetition_penalty"});
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    v1::GenerateRequest request = Prompt();
    cases[i].edit(request);
    const Answer answer = Generate(request);
    const WireError want{cases[i].code, cases[i].reason, cases[i].field};
    const WireError got = ErrorOf(answer.status);
    EXPECT_EQ(got.code + " " + got.reason + " " + got.field,
              want.code + " " + want.reason + " " + want.field)
        << "case " << i << ": " << answer.status.error_message();
    EXPECT_TRUE(answer.events.empty());
  }
  EXPECT_TRUE(Generate(Prompt()).status.ok());
}

TEST_F(RpcTest, AnInvalidArgumentCarriesBadRequest) {
  v1::GenerateRequest request = Prompt();
  request.mutable_stopping()->set_max_tokens(-1);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(Generate(request).status.error_details()));
  google::rpc::BadRequest bad;
  ASSERT_EQ(details.details_size(), 2);
  ASSERT_TRUE(details.details(1).UnpackTo(&bad));
  EXPECT_EQ(bad.field_violations(0).field(), "stopping.max_tokens");
}

TEST_F(RpcTest, BackPressureSaysWhenToRetry) {
  engine_.refusal = Refuse(absl::StatusCode::kResourceExhausted, reason::kQueueFull, "", "full");
  EXPECT_EQ(ErrorOf(Generate(Prompt()).status),
            (WireError{"RESOURCE_EXHAUSTED", "QUEUE_FULL", "", 1}));
}

TEST_F(RpcTest, AnExceptionBecomesAnErrorAndTheServerLives) {
  engine_.throws = true;
  const Answer answer = Generate(Prompt());
  EXPECT_EQ(ErrorOf(answer.status), (WireError{"INTERNAL", "INTERNAL", ""}));
  EXPECT_EQ(answer.status.error_message().find("a bug"), std::string::npos);
  engine_.throws = false;
  EXPECT_TRUE(Generate(Prompt()).status.ok());
}

TEST_F(RpcTest, CancelStopsTheSequence) {
  engine_.endless = true;
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt());
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  EXPECT_EQ(Read(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  Await([&] { return engine_.live() == 0; });
}

TEST_F(RpcTest, DeadlineStopsTheSequenceAndReachesTheEngine) {
  engine_.endless = true;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  EXPECT_EQ(Read(*generation_->Generate(&context, Prompt())).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  Await([&] { return engine_.live() == 0; });
  EXPECT_LT(engine_.last_request().deadline, absl::InfiniteFuture());
}

TEST_F(RpcTest, CancelOfGenerateOnceStopsTheSequence) {
  engine_.endless = true;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateResult result;
  EXPECT_FALSE(generation_->GenerateOnce(&context, Prompt(), &result).ok());
  Await([&] { return engine_.live() == 0; });
}

// Together larger than the flow-control windows, so that an idle reader stops the writer; a full queue
// of them (twice 64 at most) fits the 4 MiB that a client accepts as one message.
TEST_F(RpcTest, ASlowReaderParksTheSequenceAndLosesNothing) {
  engine_.tokens = 800;
  engine_.bytes = 24 << 10;
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt());
  Await([&] { return engine_.most_undelivered() >= 64; });
  EXPECT_EQ(engine_.live(), 1);
  const Answer answer = Read(*reader);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.tokens, 800);
  EXPECT_EQ(answer.text.size(), size_t{800} * (24 << 10));
  // A Resume() that was on its way when the sequence parked again lets one more delta through.
  EXPECT_LT(engine_.most_undelivered(), 2 * 64);
}

TEST_F(RpcTest, AReaderThatIsTooSlowIsToldSo) {
  engine_.endless = true;
  engine_.end_when_parked = true;
  engine_.bytes = 64 << 10;
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt());
  Await([&] { return engine_.most_undelivered() >= 64 && engine_.live() == 0; });
  EXPECT_EQ(ErrorOf(Read(*reader).status), (WireError{"RESOURCE_EXHAUSTED", "SLOW_READER", ""}));
}

TEST_F(RpcTest, ManyStreamsAtOnceEachGetTheirOwn) {
  engine_.tokens = 50;
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&] {
      const Answer answer = Generate(Prompt());
      good += answer.status.ok() && answer.tokens == 50 && answer.text.size() == 100;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 16);
}

// A call is counted after its client was answered: hence the waits.
TEST_F(RpcTest, CallsAreCounted) {
  const auto await_calls = [&](size_t count) {
    Await([&] {
      std::lock_guard lock(calls_mutex_);
      return calls_.size() == count;
    });
  };
  Generate(Prompt());
  await_calls(1);
  v1::GenerateRequest bad = Prompt();
  bad.set_regex("x");
  Generate(bad);
  await_calls(2);
  std::lock_guard lock(calls_mutex_);
  EXPECT_EQ(calls_[0].first, "GenerationService/Generate");
  EXPECT_EQ(calls_[0].second, absl::StatusCode::kOk);
  EXPECT_EQ(calls_[1].second, absl::StatusCode::kUnimplemented);
}

TEST_F(RpcTest, DrainingRefusesNewWork) {
  server_->BeginDrain();
  EXPECT_EQ(ErrorOf(Generate(Prompt()).status), (WireError{"UNAVAILABLE", "DRAINING", "", 5}));
  grpc::ClientContext context;
  lro::Operation operation;
  EXPECT_EQ(ErrorOf(quantization_->Quantize(&context, QuantizeM(), &operation)).reason, "DRAINING");
}

}  // namespace
}  // namespace babai::testing
