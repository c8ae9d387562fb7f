#include "server/engine/scheduler.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "tests/engine/fakes.h"

namespace babai {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// What the fake model says after a prompt, one token after the other.
std::vector<int32_t> Continuation(std::vector<int32_t> context, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(FakeNextToken(context));
    context.push_back(tokens.back());
  }
  return tokens;
}

std::string TextOf(const std::vector<int32_t>& tokens) {
  std::string text;
  for (int32_t token : tokens) text += static_cast<char>('a' + token);
  return text;
}

class SchedulerTest : public testing::Test {
 protected:
  void Make(int64_t kv_blocks = 64, int64_t max_sequences = 8, int64_t chunk = 16,
            int64_t max_queue = 100) {
    RunnerOptions runner_options;
    runner_options.kv_blocks = kv_blocks;
    runner_options.max_sequences = max_sequences;
    runner_options.max_step_tokens = chunk + max_sequences;
    runner_ = std::make_unique<FakeRunner>(runner_options);
    SchedulerOptions options;
    options.model = "fake";
    options.max_queue = max_queue;
    options.max_sequences = max_sequences;
    options.prefill_chunk = chunk;
    options.max_context = 1 << 20;
    options.on_failure = [this](const absl::Status& status) { failures_.push_back(status); };
    scheduler_ = std::make_unique<Scheduler>(options, runner_.get(), &tokenizer_, nullptr,
                                             [this] { return now_; });
  }

  struct Client {
    std::vector<int32_t> prompt;
    std::shared_ptr<RecordingSink> sink = std::make_shared<RecordingSink>();
    std::shared_ptr<GenerateHandle> handle;
  };

  static GenerateRequest Request(std::vector<int32_t> prompt, int64_t max_tokens) {
    GenerateRequest request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    return request;
  }

  Client Submit(GenerateRequest request) {
    Client client;
    client.prompt = request.prompt;
    auto handle = scheduler_->Submit(std::move(request), client.sink);
    EXPECT_TRUE(handle.ok()) << handle.status();
    if (handle.ok()) client.handle = *handle;
    return client;
  }

  void RunToEnd() {
    for (int i = 0; i < 100000 && scheduler_->unfinished() > 0; ++i) scheduler_->RunStep();
    EXPECT_EQ(scheduler_->unfinished(), 0);
  }

  // Nothing may be left over, whatever happened before.
  void ExpectAllFree() {
    scheduler_->RunStep();
    EXPECT_EQ(scheduler_->Stats().kv_blocks_used, 0);
    EXPECT_EQ(scheduler_->Stats().running, 0);
    EXPECT_EQ(scheduler_->Stats().waiting, 0);
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  FakeTokenizer tokenizer_;
  std::vector<absl::Status> failures_;
  std::unique_ptr<FakeRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
};

std::vector<int32_t> Prompt(int64_t length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> prompt(length);
  for (int32_t& token : prompt) token = random() % kFakeVocab;
  return prompt;
}

TEST_F(SchedulerTest, GeneratesWhatTheModelSays) {
  Make();
  Client client = Submit(Request({1, 2, 3}, 20));
  RunToEnd();
  EXPECT_EQ(client.sink->token_ids, Continuation({1, 2, 3}, 20));
  EXPECT_EQ(client.sink->text, TextOf(client.sink->token_ids));
  EXPECT_EQ(client.sink->finishes, 1);
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kLength);
  EXPECT_EQ(client.sink->finish.prompt_tokens, 3);
  EXPECT_EQ(client.sink->finish.completion_tokens, 20);
  ExpectAllFree();
}

TEST_F(SchedulerTest, EachOfManySaysTheSameAsAlone) {
  Make(/*kv_blocks=*/400, /*max_sequences=*/8, /*chunk=*/16);
  std::vector<Client> clients;
  for (int i = 0; i < 30; ++i) clients.push_back(Submit(Request(Prompt(1 + i * 7 % 90, i), 5 + i)));
  RunToEnd();
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(clients[i].sink->token_ids, Continuation(clients[i].prompt, 5 + i)) << i;
  }
  ExpectAllFree();
}

TEST_F(SchedulerTest, ALostDeviceEndsRunningAndWaiting) {
  Make(/*kv_blocks=*/64, /*max_sequences=*/2);
  runner_->failure =
      Refuse(absl::StatusCode::kUnavailable, reason::kDeviceLost, "", "it fell off the bus");
  std::vector<Client> clients;
  for (int i = 0; i < 4; ++i) clients.push_back(Submit(Request(Prompt(5, i), 50)));
  for (int i = 0; i < 3; ++i) scheduler_->RunStep();
  EXPECT_EQ(scheduler_->unfinished(), 4);
  runner_->fail = [](const StepBatch&) { return true; };
  scheduler_->RunStep();
  clients.push_back(Submit(Request(Prompt(5, 9), 50)));
  scheduler_->RunStep();
  for (const Client& client : clients) {
    EXPECT_EQ(client.sink->finishes, 1);
    EXPECT_EQ(client.sink->finish.reason, FinishReason::kError);
    EXPECT_EQ(ReasonOf(client.sink->finish.status), reason::kDeviceLost);
  }
  EXPECT_EQ(failures_.size(), 1u);  // not tried again with each alone
  ExpectAllFree();
}

// Each sequence its own way, whatever else the step holds: the ones that need logits get them.
TEST_F(SchedulerTest, TheRunnerChoosesWhatItCan) {
  Make(/*kv_blocks=*/400, /*max_sequences=*/8, /*chunk=*/16);
  runner_->chooses = true;
  std::vector<Client> clients;
  for (int i = 0; i < 12; ++i) {
    GenerateRequest request = Request(Prompt(1 + i * 7 % 90, i), 10);
    if (i % 3 == 1) request.logprobs = true;
    if (i % 3 == 2) request.sampling.logit_bias = {{3, 0.5f}};
    clients.push_back(Submit(std::move(request)));
  }
  RunToEnd();
  for (const Client& client : clients) {
    EXPECT_EQ(client.sink->token_ids, Continuation(client.prompt, 10));
  }
  EXPECT_EQ(runner_->tokens_chosen, 4 * 10);
}

// 12 blocks of 16 tokens for 6 sequences that grow to about 60 tokens each: most must give way.
TEST_F(SchedulerTest, PreemptedSequencesSayTheSame) {
  Make(/*kv_blocks=*/12, /*max_sequences=*/6, /*chunk=*/16);
  std::vector<Client> clients;
  for (int i = 0; i < 6; ++i) clients.push_back(Submit(Request(Prompt(10 + i, i), 50)));
  RunToEnd();
  EXPECT_GT(scheduler_->Stats().preemptions, 0);
  for (const Client& client : clients) {
    EXPECT_EQ(client.sink->token_ids, Continuation(client.prompt, 50));
    EXPECT_EQ(client.sink->finishes, 1);
  }
  ExpectAllFree();
}

TEST_F(SchedulerTest, LongPromptNeverHoldsUpDecoding) {
  Make(/*kv_blocks=*/100, /*max_sequences=*/4, /*chunk=*/16);
  Client first = Submit(Request({1, 2}, 200));
  scheduler_->RunStep();
  Client second = Submit(Request(Prompt(300, 1), 5));
  const size_t before = first.sink->token_ids.size();
  runner_->steps.clear();
  for (int i = 0; i < 10; ++i) {
    scheduler_->RunStep();
    EXPECT_EQ(first.sink->token_ids.size(), before + i + 1) << "one token a step";
    EXPECT_THAT(runner_->steps[i], ElementsAre(1, 16));
  }
  RunToEnd();
  EXPECT_EQ(second.sink->token_ids, Continuation(second.prompt, 5));
}

TEST_F(SchedulerTest, StopStringEndsAcrossTokens) {
  Make();
  const std::vector<int32_t> says = Continuation({4}, 20);
  GenerateRequest request = Request({4}, 20);
  request.stop = {TextOf({says[5], says[6], says[7]})};
  Client client = Submit(request);
  RunToEnd();
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kStopString);
  EXPECT_EQ(client.sink->finish.matched_stop, request.stop[0]);
  const std::string all = TextOf(says);
  EXPECT_EQ(client.sink->text, all.substr(0, all.find(request.stop[0])));
}

TEST_F(SchedulerTest, TextHeldBackComesAtTheEnd) {
  Make();
  const std::vector<int32_t> says = Continuation({4}, 6);
  GenerateRequest request = Request({4}, 6);
  request.stop = {TextOf({says[4], says[5]}) + "?"};
  Client client = Submit(request);
  RunToEnd();
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kLength);
  EXPECT_EQ(client.sink->text, TextOf(says));
}

TEST_F(SchedulerTest, IdsBeyondTheTokenizerHaveNoText) {
  tokenizer_.vocab = 16;
  Make();
  Client client = Submit(Request({1, 2, 3}, 20));
  RunToEnd();
  std::vector<int32_t> says = Continuation({1, 2, 3}, 20);
  EXPECT_EQ(client.sink->token_ids, says);
  says.erase(std::remove_if(says.begin(), says.end(), [](int32_t id) { return id >= 16; }),
             says.end());
  EXPECT_EQ(client.sink->text, TextOf(says));
}

TEST_F(SchedulerTest, StopTokenEndsWithoutItsText) {
  Make();
  const std::vector<int32_t> says = Continuation({9}, 20);
  GenerateRequest request = Request({9}, 20);
  request.stop_token_ids = {says[3]};
  const size_t at = std::find(says.begin(), says.end(), says[3]) - says.begin();
  Client client = Submit(request);
  request.include_stop = true;
  Client with = Submit(request);
  RunToEnd();
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kStopToken);
  EXPECT_EQ(client.sink->token_ids.size(), at + 1);
  EXPECT_EQ(client.sink->text, TextOf(says).substr(0, at));
  EXPECT_EQ(with.sink->text, TextOf(says).substr(0, at + 1));
}

TEST_F(SchedulerTest, EndOfTextEndsUnlessIgnored) {
  Make();
  std::vector<int32_t> prompt = {
      0};  // the first prompt after which the model ends within 100 tokens
  std::vector<int32_t> says;
  size_t at = 100;
  for (; at == 100; ++prompt[0]) {
    says = Continuation(prompt, 100);
    at = std::find(says.begin(), says.end(), kFakeEos) - says.begin();
    if (at < 100) break;
  }
  GenerateRequest request = Request(prompt, 100);
  request.ignore_eos = false;
  Client client = Submit(request);
  RunToEnd();
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kEos);
  EXPECT_EQ(client.sink->token_ids.size(), at + 1);
  EXPECT_EQ(client.sink->text, TextOf(says).substr(0, at));
}

TEST_F(SchedulerTest, CancelFreesBlocksWithinAStep) {
  Make();
  Client client = Submit(Request(Prompt(40, 1), 900));
  for (int i = 0; i < 10; ++i) scheduler_->RunStep();
  EXPECT_GT(scheduler_->Stats().kv_blocks_used, 0);
  client.handle->Cancel();
  scheduler_->RunStep();
  EXPECT_EQ(client.sink->finishes, 1);
  EXPECT_EQ(client.sink->finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(ReasonOf(client.sink->finish.status), reason::kCancelled);
  EXPECT_EQ(scheduler_->Stats().kv_blocks_used, 0);
}

TEST_F(SchedulerTest, DeadlineCountsWhileQueued) {
  Make(/*kv_blocks=*/8, /*max_sequences=*/1);
  Client running = Submit(Request({1}, 100));
  GenerateRequest request = Request({2}, 10);
  request.deadline = now_ + absl::Seconds(1);
  Client queued = Submit(request);
  scheduler_->RunStep();
  EXPECT_EQ(scheduler_->NextEvent(), request.deadline);
  now_ += absl::Seconds(1);
  scheduler_->RunStep();
  EXPECT_EQ(queued.sink->finishes, 1);
  EXPECT_TRUE(absl::IsDeadlineExceeded(queued.sink->finish.status));
  EXPECT_THAT(queued.sink->token_ids, IsEmpty());
  EXPECT_EQ(running.sink->finishes, 0);
}

TEST_F(SchedulerTest, SlowReaderIsParkedAndGoesOn) {
  Make();
  Client client = Submit(Request({1}, 30));
  client.sink->behind = 64;
  EXPECT_TRUE(scheduler_->RunStep());
  EXPECT_FALSE(scheduler_->RunStep()) << "nothing to do while it is parked";
  EXPECT_EQ(client.sink->token_ids.size(), 1);
  client.sink->behind = 0;
  client.handle->Resume();
  RunToEnd();
  EXPECT_EQ(client.sink->token_ids, Continuation({1}, 30));
}

TEST_F(SchedulerTest, ReaderThatStaysBehindIsEnded) {
  Make();
  Client client = Submit(Request({1}, 30));
  client.sink->behind = 100;
  scheduler_->RunStep();
  EXPECT_EQ(scheduler_->NextEvent(), now_ + absl::Seconds(10));
  now_ += absl::Seconds(10);
  scheduler_->RunStep();
  EXPECT_EQ(ReasonOf(client.sink->finish.status), reason::kSlowReader);
  ExpectAllFree();
}

TEST_F(SchedulerTest, ParkedSequencesGiveWayToOthers) {
  Make(/*kv_blocks=*/8, /*max_sequences=*/1);
  Client slow = Submit(Request({1}, 30));
  slow.sink->behind = 64;
  scheduler_->RunStep();
  Client other = Submit(Request({2}, 10));
  for (int i = 0; i < 12; ++i) scheduler_->RunStep();
  EXPECT_EQ(other.sink->finishes, 1);
  slow.sink->behind = 0;
  slow.handle->Resume();
  RunToEnd();
  EXPECT_EQ(slow.sink->token_ids, Continuation({1}, 30));
}

TEST_F(SchedulerTest, OneBrokenSequenceDoesNotEndTheOthers) {
  Make();
  runner_->fail = [](const StepBatch& batch) {
    return std::find(batch.tokens.begin(), batch.tokens.end(), 7) != batch.tokens.end() &&
           batch.positions[std::find(batch.tokens.begin(), batch.tokens.end(), 7) -
                           batch.tokens.begin()] == 2;
  };
  std::vector<Client> good;
  for (int i = 0; i < 3; ++i) good.push_back(Submit(Request({1, i}, 1)));
  Client bad = Submit(Request({1, 2, 7}, 10));
  RunToEnd();
  EXPECT_EQ(bad.sink->finish.reason, FinishReason::kError);
  EXPECT_TRUE(absl::IsInternal(bad.sink->finish.status));
  for (const Client& client : good) {
    EXPECT_EQ(client.sink->token_ids, Continuation(client.prompt, 1));
  }
}

TEST_F(SchedulerTest, QueueIsBounded) {
  Make(/*kv_blocks=*/8, /*max_sequences=*/1, /*chunk=*/16, /*max_queue=*/2);
  Submit(Request({1}, 50));
  scheduler_->RunStep();
  Submit(Request({2}, 1));
  Submit(Request({3}, 1));
  auto sink = std::make_shared<RecordingSink>();
  const auto refused = scheduler_->Submit(Request({4}, 1), sink);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status()));
  EXPECT_EQ(ReasonOf(refused.status()), reason::kQueueFull);
  RunToEnd();
  EXPECT_EQ(sink->finishes, 0);
}

TEST_F(SchedulerTest, RefusesWhatCanNotRun) {
  Make(/*kv_blocks=*/4);  // 64 tokens
  const auto refusal = [&](auto change) {
    GenerateRequest request = Request({1, 2}, 4);
    change(request);
    return scheduler_->Submit(request, std::make_shared<RecordingSink>()).status();
  };
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.prompt.clear(); })), "prompt");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.prompt = {kFakeVocab}; })), "prompt");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.prompt = {-1}; })), "prompt");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.max_tokens = -1; })), "max_tokens");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.stop = {""}; })), "stop");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.stop = {std::string(65, 'x')}; })), "stop");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.stop.assign(17, "x"); })), "stop");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.stop_token_ids = {99}; })), "stop_token_ids");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.sampling.top_p = 2; })), "sampling.top_p");
  const absl::Status too_long = refusal([](auto& r) { r.prompt.assign(64, 1); });
  EXPECT_EQ(ReasonOf(too_long), reason::kContextTooLong);
  EXPECT_EQ(FieldOf(too_long), "prompt");
  EXPECT_EQ(FieldOf(refusal([](auto& r) { r.max_tokens = 63; })), "max_tokens");
  EXPECT_TRUE(refusal([](auto& r) { r.max_tokens = 62; }).ok());
}

TEST_F(SchedulerTest, WithoutALimitFillsTheContext) {
  Make(/*kv_blocks=*/4);
  Client client = Submit(Request({1, 2}, 0));
  RunToEnd();
  EXPECT_EQ(client.sink->token_ids, Continuation({1, 2}, 62));
}

TEST_F(SchedulerTest, DrainEndsWaitingAtOnceAndRunningAtTheDeadline) {
  Make(/*kv_blocks=*/8, /*max_sequences=*/1);
  Client running = Submit(Request({1}, 100));
  Client waiting = Submit(Request({2}, 100));
  scheduler_->RunStep();
  scheduler_->Drain(now_ + absl::Seconds(5));
  scheduler_->RunStep();
  EXPECT_EQ(ReasonOf(waiting.sink->finish.status), reason::kDraining);
  EXPECT_EQ(running.sink->finishes, 0);
  const auto refused = scheduler_->Submit(Request({3}, 1), std::make_shared<RecordingSink>());
  EXPECT_TRUE(absl::IsUnavailable(refused.status()));
  now_ += absl::Seconds(5);
  scheduler_->RunStep();
  EXPECT_EQ(running.sink->finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(ReasonOf(running.sink->finish.status), reason::kDraining);
  ExpectAllFree();
}

TEST_F(SchedulerTest, DestructionEndsEverySequence) {
  Make(/*kv_blocks=*/8, /*max_sequences=*/1);
  Client running = Submit(Request({1}, 100));
  Client waiting = Submit(Request({2}, 100));
  scheduler_->RunStep();
  scheduler_.reset();
  EXPECT_EQ(running.sink->finishes, 1);
  EXPECT_EQ(waiting.sink->finishes, 1);
  running.handle->Cancel();  // outlives the scheduler
}

// Everything at once, for many seeds: whatever ends regularly says what it says alone.
TEST_F(SchedulerTest, RandomLoadKeepsTheText) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    Make(/*kv_blocks=*/10, /*max_sequences=*/4, /*chunk=*/16);
    std::vector<Client> clients;
    for (int step = 0; step < 400; ++step) {
      now_ += absl::Milliseconds(100);
      if (clients.size() < 25 && random() % 4 == 0) {
        clients.push_back(Submit(Request(Prompt(1 + random() % 70, random()), 1 + random() % 60)));
        clients.back().sink->behind = random() % 6 == 0 ? 64 : 0;
      }
      if (!clients.empty() && random() % 20 == 0)
        clients[random() % clients.size()].handle->Cancel();
      if (!clients.empty() && random() % 2 == 0)
        clients[random() % clients.size()].handle->Resume();
      scheduler_->RunStep();
    }
    for (Client& client : clients) {
      client.sink->behind = 0;
      client.handle->Resume();
    }
    RunToEnd();
    for (const Client& client : clients) {
      const auto& ids = client.sink->token_ids;
      EXPECT_EQ(ids, Continuation(client.prompt, ids.size()));
      EXPECT_EQ(client.sink->finishes, 1);
    }
    ExpectAllFree();
  }
}

}  // namespace
}  // namespace babai
