// The registry of loaded models behind Engine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "server/engine/engine.h"
#include "server/engine/loaded_model.h"
#include "server/engine/memory_budget.h"

namespace babai {

class EngineImpl final : public Engine {
 public:
  EngineImpl(EngineOptions options, Catalog* catalog, EngineObserver* observer);
  ~EngineImpl() override;

  absl::Status Load(std::string_view name) override;
  absl::Status Unload(std::string_view name) override;
  absl::Status SetPinned(std::string_view name, bool pinned) override;
  ModelStatus Status(std::string_view name) const override;
  std::vector<ModelStatus> Loaded() const override;
  absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerOf(std::string_view name) override;
  absl::StatusOr<ModelConfig> ConfigOf(std::string_view name) override;
  absl::StatusOr<std::shared_ptr<GenerateHandle>> Generate(
      GenerateRequest request, std::shared_ptr<GenerateSink> sink) override;
  absl::StatusOr<EvaluateResult> Evaluate(const EvaluateRequest& request,
                                          const std::function<void(double)>& progress,
                                          const std::function<bool()>& stop) override;
  std::vector<EngineStats> Stats() const override;
  void Drain(absl::Time deadline) override;

 private:
  using ModelPtr = std::shared_ptr<LoadedModel>;
  // One try to load, shared by all who wait for it.
  struct LoadAttempt {
    bool done = false;
    absl::StatusOr<ModelPtr> result = absl::UnknownError("");
  };
  struct Entry {
    std::shared_ptr<LoadAttempt> loading;  // null unless a load is under way
    ModelPtr model;                        // null unless loaded
    bool pinned = false;
    absl::Status error;  // of the last load
    absl::Time last_used = absl::InfinitePast();
  };
  struct EvaluationRunner {
    MemoryShare memory;
    std::unique_ptr<Runner> runner;
  };

  // Says so once if `status` is DEVICE_LOST.
  void NoteLoss(const absl::Status& status);
  absl::StatusOr<ModelPtr> Acquire(std::string_view name);
  absl::StatusOr<ModelPtr> LoadFromDisk(const std::string& name);
  absl::StatusOr<std::shared_ptr<const PackedModel>> OpenPacked(std::string_view name) const;
  // On the engine's device.
  absl::StatusOr<MemoryPlan> Plan(const PackedModel& model, const RunnerOptions& options) const;
  absl::StatusOr<std::unique_ptr<Runner>> MakeRunner(std::shared_ptr<const PackedModel> model,
                                                     const RunnerOptions& options);
  absl::StatusOr<EvaluationRunner> MakeEvaluationRunner(const EvaluateRequest& request,
                                                        const std::string& name);
  absl::Status Reserve(int64_t bytes, MemoryShare* share);
  ModelPtr TakeLeastRecentlyUsed();
  static bool Idle(const Entry& entry);
  ModelStatus StatusOf(const std::string& name, const Entry& entry) const;
  RunnerOptions ServingOptions(const ModelConfig& config, const MemoryPlan& plan) const;

  const EngineOptions options_;
  Catalog* const catalog_;
  EngineObserver* const observer_;
  ThreadPool pool_;
  MemoryBudget budget_;

  std::atomic<bool> lost_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a load ended
  std::map<std::string, Entry, std::less<>> entries_;
  bool draining_ = false;
};

}  // namespace babai
