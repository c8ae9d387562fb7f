#include "server/engine/loaded_model.h"

#include <algorithm>
#include <utility>

namespace babai {

LoadedModel::LoadedModel(SchedulerOptions options, std::unique_ptr<Runner> runner,
                         std::shared_ptr<const Tokenizer> tokenizer, MemoryShare memory,
                         EngineObserver* observer)
    : memory_(std::move(memory)),
      runner_(std::move(runner)),
      tokenizer_(std::move(tokenizer)),
      context_length_(std::min(options.max_context,
                               runner_->options().kv_blocks * runner_->options().block_size)),
      scheduler_(std::move(options), runner_.get(), tokenizer_.get(), observer, &absl::Now),
      thread_([this] { Loop(); }) {}

LoadedModel::~LoadedModel() {
  stop_ = true;
  scheduler_.wake()->Notify();
  thread_.join();
}

void LoadedModel::Loop() {
  while (!stop_) {
    if (!scheduler_.RunStep()) scheduler_.wake()->WaitUntil(scheduler_.NextEvent());
  }
}

}  // namespace babai
