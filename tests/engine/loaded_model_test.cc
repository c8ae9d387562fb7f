#include "server/engine/loaded_model.h"

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "server/reason/reason.h"
#include "tests/engine/fakes.h"

namespace babai {
namespace {

// Counts down when a stream ends.
class CountedSink final : public GenerateSink {
 public:
  explicit CountedSink(std::atomic<int>* left) : left_(left) {}
  int64_t OnDelta(Delta delta) override {
    ids.insert(ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    return ids.size() % 10 == 0 ? 64 : 0;  // parks every ten tokens
  }
  void OnFinish(Finish f) override {
    finish = std::move(f);
    --*left_;
  }
  std::vector<int32_t> ids;
  Finish finish;

 private:
  std::atomic<int>* left_;
};

class LoadedModelTest : public testing::Test {
 protected:
  std::unique_ptr<LoadedModel> Make() {
    RunnerOptions runner;
    runner.kv_blocks = 16;
    runner.max_sequences = 4;
    runner.max_step_tokens = 20;
    SchedulerOptions options;
    options.model = "fake";
    options.max_queue = 1000;
    options.max_sequences = 4;
    options.prefill_chunk = 16;
    options.max_context = 1 << 20;
    options.park_limit = absl::Minutes(10);
    return std::make_unique<LoadedModel>(options, std::make_unique<FakeRunner>(runner),
                                         std::make_shared<FakeTokenizer>(), MemoryShare(), nullptr);
  }
  static GenerateRequest Request(int32_t first, int64_t max_tokens) {
    GenerateRequest request;
    request.prompt = {first, 1, 2};
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    return request;
  }
};

// Clients that submit, cancel, resume and look at figures from many threads. What it proves about
// races it proves under the thread sanitizer.
TEST_F(LoadedModelTest, ServesManyThreads) {
  constexpr int kClients = 4, kRequests = 40;
  std::unique_ptr<LoadedModel> model = Make();
  std::atomic<int> left = kClients * kRequests;
  std::vector<std::vector<std::shared_ptr<CountedSink>>> sinks(kClients);
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 random(c);
      std::vector<std::shared_ptr<GenerateHandle>> handles;
      for (int i = 0; i < kRequests; ++i) {
        sinks[c].push_back(std::make_shared<CountedSink>(&left));
        auto handle = model->scheduler().Submit(Request(i % 30, 1 + i), sinks[c].back());
        ASSERT_TRUE(handle.ok()) << handle.status();
        handles.push_back(*handle);
        if (random() % 5 == 0) handles[random() % handles.size()]->Cancel();
      }
      while (left > 0) {
        for (const auto& handle : handles) handle->Resume();
        model->scheduler().Stats();
        std::this_thread::yield();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (const auto& of_client : sinks) {
    for (int i = 0; i < kRequests; ++i) {
      const bool cancelled = absl::IsCancelled(of_client[i]->finish.status);
      EXPECT_TRUE(cancelled || of_client[i]->finish.status.ok());
      if (!cancelled) {
        EXPECT_EQ(of_client[i]->ids.size(), 1 + i);
      }
    }
  }
}

TEST_F(LoadedModelTest, DestructionEndsStreams) {
  std::unique_ptr<LoadedModel> model = Make();
  std::atomic<int> left = 8;
  std::vector<std::shared_ptr<GenerateHandle>> handles;
  for (int i = 0; i < 8; ++i) {
    handles.push_back(
        *model->scheduler().Submit(Request(i, 200), std::make_shared<CountedSink>(&left)));
  }
  model.reset();
  EXPECT_EQ(left, 0);
  for (const auto& handle : handles) handle->Cancel();  // nobody listens any more
}

// A thread that sleeps until the next deadline must wake for it by itself.
TEST_F(LoadedModelTest, SleepsUntilTheDeadlineOfAParkedStream) {
  std::unique_ptr<LoadedModel> model = Make();
  std::atomic<int> left = 1;
  GenerateRequest request = Request(1, 200);
  request.deadline = absl::Now() + absl::Milliseconds(50);
  auto sink = std::make_shared<CountedSink>(&left);
  ASSERT_TRUE(model->scheduler().Submit(request, sink).ok());
  while (left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink->finish.status));
  EXPECT_LE(sink->ids.size(), 10);
}

}  // namespace
}  // namespace babai
