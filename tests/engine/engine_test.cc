#include "server/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "tests/engine/tiny_packed.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

// Collects a stream on the engine's thread; tests wait for its parts.
class WaitingSink final : public GenerateSink {
 public:
  int64_t OnDelta(Delta delta) override {
    std::lock_guard<std::mutex> lock(mutex_);
    ids_.insert(ids_.end(), delta.token_ids.begin(), delta.token_ids.end());
    text_ += delta.text;
    ++undelivered_;
    changed_.notify_all();
    return slow_ ? undelivered_ : 0;
  }
  void OnFinish(Finish finish) override {
    std::lock_guard<std::mutex> lock(mutex_);
    finish_ = std::move(finish);
    finished_ = true;
    changed_.notify_all();
  }
  Finish Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return finished_; });
    return finish_;
  }
  void WaitForTokens(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ids_.size() >= count || finished_; });
  }
  std::vector<int32_t> ids() {
    std::lock_guard<std::mutex> lock(mutex_);
    return ids_;
  }
  void MakeSlow() { slow_ = true; }
  void Drain() {
    std::lock_guard<std::mutex> lock(mutex_);
    undelivered_ = 0;
    slow_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  std::string text_;
  Finish finish_;
  int64_t undelivered_ = 0;
  bool finished_ = false, slow_ = false;
};

struct CountingObserver final : EngineObserver {
  void OnFirstToken(std::string_view, absl::Duration, absl::Duration) override { ++first; }
  void OnInterToken(std::string_view, absl::Duration) override { ++gaps; }
  void OnFinished(std::string_view, const Finish&, absl::Duration) override { ++finished; }
  void OnLoaded(std::string_view, absl::Duration, bool ok) override { ++(ok ? loaded : failed); }
  std::atomic<int> first = 0, gaps = 0, finished = 0, loaded = 0, failed = 0;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    catalog_ = *Catalog::Open(temp_.path() / "data");
    for (const char* name : {"one", "two", "three"}) AddModel(name, name[1]);
  }

  void AddModel(const std::string& name, uint64_t seed) {
    TinyModel tiny;
    tiny.seed = seed;
    const auto checkpoint = OpenTiny(tiny, temp_.path() / ("hf-" + name));
    PackTiny(*checkpoint, 4, catalog_->NewStagingDir(name), catalog_->ModelDir(name));
  }

  void Start(EngineOptions options = {}) {
    options.threads = 2;
    engine_ = *Engine::Create(options, catalog_.get(), &observer_);
  }

  static GenerateRequest Request(const std::string& model, int64_t max_tokens, int32_t first = 10) {
    GenerateRequest request;
    request.model = model;
    for (int32_t i = 0; i < 8; ++i) request.prompt.push_back((first * 7 + i * i) % 250 + 3);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    return request;
  }

  struct Call {
    std::shared_ptr<WaitingSink> sink = std::make_shared<WaitingSink>();
    std::shared_ptr<GenerateHandle> handle;
  };
  Call Generate(const GenerateRequest& request) {
    Call call;
    auto handle = engine_->Generate(request, call.sink);
    EXPECT_TRUE(handle.ok()) << handle.status();
    if (handle.ok()) call.handle = *handle;
    return call;
  }

  TempDir temp_;
  std::unique_ptr<Catalog> catalog_;
  CountingObserver observer_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, AloneAndInABatchTheTextIsTheSame) {
  Start();
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 12; ++i) {
    Call call = Generate(Request("one", 5 + 3 * i, i));
    EXPECT_EQ(call.sink->Wait().status, absl::OkStatus());
    alone.push_back(call.sink->ids());
  }
  std::vector<Call> calls;
  for (int i = 0; i < 12; ++i) calls.push_back(Generate(Request("one", 5 + 3 * i, i)));
  for (int i = 0; i < 12; ++i) {
    const Finish finish = calls[i].sink->Wait();
    EXPECT_EQ(finish.reason, FinishReason::kLength);
    EXPECT_EQ(finish.completion_tokens, 5 + 3 * i);
    EXPECT_EQ(calls[i].sink->ids(), alone[i]) << i;
  }
  EXPECT_EQ(observer_.first, 24);
  EXPECT_EQ(observer_.finished, 24);
  EXPECT_EQ(observer_.loaded, 1);
}

TEST_F(EngineTest, ASeedGivesTheSameTokensInAnyCompany) {
  Start();
  GenerateRequest request = Request("one", 40);
  request.sampling.temperature = 1;
  request.sampling.seed = 5;
  Call alone = Generate(request);
  alone.sink->Wait();
  std::vector<Call> others;
  for (int i = 0; i < 6; ++i) others.push_back(Generate(Request("one", 50, i)));
  Call among = Generate(request);
  request.sampling.seed = 6;
  Call other_seed = Generate(request);
  among.sink->Wait();
  other_seed.sink->Wait();
  EXPECT_EQ(among.sink->ids(), alone.sink->ids());
  EXPECT_NE(other_seed.sink->ids(), alone.sink->ids());
  for (Call& call : others) call.sink->Wait();
}

TEST_F(EngineTest, WaitersShareOneLoad) {
  Start();
  std::vector<std::thread> threads;
  std::atomic<int> ok = 0;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { ok += engine_->Load("one").ok(); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ok, 8);
  EXPECT_EQ(observer_.loaded, 1);
  EXPECT_EQ(engine_->Status("one").state, LoadState::kLoaded);
  EXPECT_THAT(engine_->Loaded(), SizeIs(1));
}

TEST_F(EngineTest, CancelEndsAStream) {
  Start();
  Call call;
  call.sink->MakeSlow();  // or a loaded machine may see it end by itself
  call.handle = *engine_->Generate(Request("one", 200), call.sink);
  call.sink->WaitForTokens(2);
  call.handle->Cancel();
  const Finish finish = call.sink->Wait();
  EXPECT_EQ(finish.reason, FinishReason::kCancelled);
  EXPECT_EQ(ReasonOf(finish.status), reason::kCancelled);
}

TEST_F(EngineTest, DeadlineEndsAStream) {
  Start();
  ASSERT_TRUE(engine_->Load("one").ok());
  GenerateRequest request = Request("one", 0);
  Call call;
  request.deadline = absl::Now();
  call = Generate(request);
  EXPECT_TRUE(absl::IsDeadlineExceeded(call.sink->Wait().status));
}

TEST_F(EngineTest, SlowReaderWaitsAndGoesOn) {
  Start();
  Call fast = Generate(Request("one", 150));
  fast.sink->Wait();
  Call slow;
  slow.sink->MakeSlow();
  slow.handle = *engine_->Generate(Request("one", 150), slow.sink);
  slow.sink->WaitForTokens(64);
  EXPECT_EQ(slow.sink->ids().size(), 64);
  slow.sink->Drain();
  slow.handle->Resume();
  EXPECT_TRUE(slow.sink->Wait().status.ok());
  EXPECT_EQ(slow.sink->ids(), fast.sink->ids());
}

TEST_F(EngineTest, BusyModelIsNotUnloaded) {
  Start();
  Call call;
  call.sink->MakeSlow();  // parked: it stays
  call.handle = *engine_->Generate(Request("one", 200), call.sink);
  call.sink->WaitForTokens(1);
  EXPECT_EQ(ReasonOf(engine_->Unload("one")), reason::kModelBusy);
  call.handle->Cancel();
  call.sink->Wait();
  // The sequence is counted until its step has ended.
  absl::Status unloaded = engine_->Unload("one");
  while (ReasonOf(unloaded) == reason::kModelBusy) unloaded = engine_->Unload("one");
  EXPECT_TRUE(unloaded.ok()) << unloaded;
  EXPECT_EQ(engine_->Status("one").state, LoadState::kUnloaded);
  EXPECT_THAT(engine_->Loaded(), IsEmpty());
}

TEST_F(EngineTest, LeastRecentlyUsedModelMakesRoom) {
  EngineOptions options;
  options.prefill_chunk = 16;
  options.max_sequences = 2;
  RunnerOptions runner;
  runner.kv_blocks = 8;
  runner.max_step_tokens = options.prefill_chunk + options.max_sequences;
  runner.max_sequences = options.max_sequences;
  const MemoryPlan plan = *PlanMemory(**PackedModel::Open(catalog_->ModelDir("one")), runner);
  options.kv_bytes_per_model = plan.kv_bytes_per_block * runner.kv_blocks;
  const int64_t bytes = plan.weight_bytes + plan.work_bytes + options.kv_bytes_per_model;
  options.memory_limit_bytes = bytes * 5 / 2;  // room for two such models, not for three
  Start(options);
  ASSERT_TRUE(engine_->Load("one").ok());
  ASSERT_TRUE(engine_->Load("two").ok());
  ASSERT_TRUE(engine_->Load("one").ok());  // used again: "two" is now the older one
  ASSERT_TRUE(engine_->Load("three").ok()) << engine_->Load("three");
  EXPECT_EQ(engine_->Status("one").state, LoadState::kLoaded);
  EXPECT_EQ(engine_->Status("two").state, LoadState::kUnloaded);

  ASSERT_TRUE(engine_->SetPinned("one", true).ok());
  ASSERT_TRUE(engine_->SetPinned("three", true).ok());
  const absl::Status full = engine_->Load("two");
  EXPECT_EQ(ReasonOf(full), reason::kOutOfMemory);
  EXPECT_EQ(engine_->Status("two").state, LoadState::kFailed);
  ASSERT_TRUE(engine_->SetPinned("one", false).ok());
  EXPECT_TRUE(engine_->Load("two").ok());
}

TEST_F(EngineTest, RefusesWhatItDoesNotHave) {
  Start();
  EXPECT_EQ(ReasonOf(engine_->Load("none")), reason::kModelNotFound);
  EXPECT_EQ(ReasonOf(engine_->Unload("none")), reason::kModelNotFound);
  EXPECT_EQ(ReasonOf(engine_->SetPinned("none", true)), reason::kModelNotFound);
  EXPECT_EQ(ReasonOf(engine_->TokenizerOf("none").status()), reason::kModelNotFound);
  EXPECT_EQ(ReasonOf(engine_->ConfigOf("none").status()), reason::kModelNotFound);
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->Load("../one")));
  auto sink = std::make_shared<WaitingSink>();
  GenerateRequest request = Request("one", 100000);
  EXPECT_EQ(ReasonOf(engine_->Generate(request, sink).status()), reason::kContextTooLong);
}

TEST_F(EngineTest, DamagedModelFailsToLoadAndStaysAway) {
  Start();
  std::ofstream(catalog_->ModelDir("two") / "rest.safetensors", std::ios::app) << "x";
  EXPECT_TRUE(absl::IsDataLoss(engine_->Load("two")));
  EXPECT_EQ(engine_->Status("two").state, LoadState::kFailed);
  EXPECT_EQ(observer_.failed, 1);
  EXPECT_TRUE(engine_->Load("one").ok());
}

TEST_F(EngineTest, TokenizerAndConfigNeedNoLoad) {
  Start();
  const auto tokenizer = engine_->TokenizerOf("one");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("abc", false, false), testing::Not(IsEmpty()));
  EXPECT_EQ(engine_->ConfigOf("one")->hidden, 64);
  EXPECT_THAT(engine_->Loaded(), IsEmpty());
}

TEST_F(EngineTest, EvaluatesAgainstAReference) {
  Start();
  EvaluateRequest request;
  request.model = "one";
  request.reference = "one";
  for (int i = 0; i < 1000; ++i) request.tokens.push_back((i * i + 3 * i) % 300);
  request.context = 128;
  const EvaluateResult same = *engine_->Evaluate(request, nullptr, nullptr);
  EXPECT_EQ(same.windows, 7);
  EXPECT_LT(same.kl_max, 1e-5);
  EXPECT_EQ(same.top1_agreement, 1);
  request.reference = "two";
  EXPECT_GT(engine_->Evaluate(request, nullptr, nullptr)->mean_kl, 0.01);
  request.model = "none";
  EXPECT_EQ(ReasonOf(engine_->Evaluate(request, nullptr, nullptr).status()),
            reason::kModelNotFound);
}

TEST_F(EngineTest, DrainLetsRunningStreamsEnd) {
  Start();
  Call call = Generate(Request("one", 100));
  call.sink->WaitForTokens(1);
  engine_->Drain(absl::Now() + absl::Minutes(5));
  const Finish finish = call.sink->Wait();
  EXPECT_TRUE(finish.status.ok()) << finish.status;
  EXPECT_EQ(finish.completion_tokens, 100);
  EXPECT_EQ(ReasonOf(engine_->Generate(Request("one", 1), call.sink).status()), reason::kDraining);
}

}  // namespace
}  // namespace babai
