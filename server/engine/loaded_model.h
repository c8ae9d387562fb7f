// A model in memory: runner, tokenizer, scheduler and the thread that drives it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/engine.h"
#include "server/engine/memory_budget.h"
#include "server/engine/runner.h"
#include "server/engine/scheduler.h"
#include "server/text/tokenizer.h"

namespace babai {

class LoadedModel {
 public:
  LoadedModel(SchedulerOptions options, std::unique_ptr<Runner> runner,
              std::shared_ptr<const Tokenizer> tokenizer, MemoryShare memory,
              EngineObserver* observer);
  // Ends what still runs with DRAINING.
  ~LoadedModel();

  Scheduler& scheduler() { return scheduler_; }
  const Runner& runner() const { return *runner_; }
  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }
  int64_t context_length() const { return context_length_; }

 private:
  void Loop();

  const MemoryShare memory_;
  const std::unique_ptr<Runner> runner_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const int64_t context_length_;
  Scheduler scheduler_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace babai
