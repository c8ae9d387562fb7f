#include "server/engine/engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine/cuda_runner.h"
#include "server/engine/engine_impl.h"
#include "server/engine/evaluate.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;
constexpr int64_t kDefaultKvSequences = 8;

absl::Status NotFound(std::string_view name) {
  return Refuse(
      absl::StatusCode::kNotFound, reason::kModelNotFound, "model",
      absl::StrCat("there is no model '", absl::string_view(name.data(), name.size()), "'"));
}

absl::Status Busy(std::string_view name) {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kModelBusy, "model",
                absl::StrCat("'", absl::string_view(name.data(), name.size()),
                             "' is in use; wait for its requests or cancel them"));
}

absl::Status Draining() {
  return Refuse(absl::StatusCode::kUnavailable, reason::kDraining, "", "the server is stopping");
}

}  // namespace

std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options, Catalog* catalog,
                                                       EngineObserver* observer) {
  const std::pair<const char*, int64_t> positive[] = {{"max_queue", options.max_queue},
                                                      {"max_sequences", options.max_sequences},
                                                      {"prefill_chunk", options.prefill_chunk}};
  for (const auto& [field, value] : positive) {
    if (value < 1) return InvalidField(field, absl::StrCat("must be at least 1, got ", value));
  }
  const std::pair<const char*, int64_t> not_negative[] = {
      {"threads", options.threads},
      {"memory_limit_bytes", options.memory_limit_bytes},
      {"kv_bytes_per_model", options.kv_bytes_per_model},
      {"max_context", options.max_context}};
  for (const auto& [field, value] : not_negative) {
    if (value < 0) return InvalidField(field, absl::StrCat("must be at least 0, got ", value));
  }
  if (options.device == Device::kCuda && options.memory_limit_bytes == 0) {
    const absl::StatusOr<int64_t> limit = DefaultCudaMemoryLimit();
    if (!limit.ok()) return limit.status();
    options.memory_limit_bytes = *limit;
  }
  return std::unique_ptr<Engine>(new EngineImpl(std::move(options), catalog, observer));
}

EngineImpl::EngineImpl(EngineOptions options, Catalog* catalog, EngineObserver* observer)
    : options_(std::move(options)),
      catalog_(catalog),
      observer_(observer),
      pool_(options_.threads),
      budget_(options_.memory_limit_bytes > 0 ? options_.memory_limit_bytes
                                              : DefaultMemoryLimit()) {}

EngineImpl::~EngineImpl() = default;

bool EngineImpl::Idle(const Entry& entry) {
  // The registry's reference is the only one: nobody is about to submit.
  return entry.model.use_count() == 1 && entry.model->scheduler().unfinished() == 0;
}

EngineImpl::ModelPtr EngineImpl::TakeLeastRecentlyUsed() {
  Entry* oldest = nullptr;
  for (auto& [name, entry] : entries_) {
    if (entry.model == nullptr || entry.pinned || !Idle(entry)) continue;
    if (oldest == nullptr || entry.last_used < oldest->last_used) oldest = &entry;
  }
  return oldest == nullptr ? nullptr : std::exchange(oldest->model, nullptr);
}

// Takes bytes from the budget; idle models that nobody pinned make room, the longest unused first.
absl::Status EngineImpl::Reserve(int64_t bytes, MemoryShare* share) {
  while (!budget_.Take(bytes, share)) {
    ModelPtr evicted;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (bytes <= budget_.limit()) evicted = TakeLeastRecentlyUsed();
    }
    if (evicted != nullptr) continue;  // dropped here: joins its idle thread, outside the lock
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "model",
                  absl::StrCat("needs ", bytes, " bytes, ", budget_.free(), " of ", budget_.limit(),
                               " are free; unload a model or raise the memory limit"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const PackedModel>> EngineImpl::OpenPacked(
    std::string_view name) const {
  if (absl::Status valid = ValidateModelName(name, "model"); !valid.ok()) return valid;
  if (!catalog_->Exists(name)) return NotFound(name);
  return PackedModel::Open(catalog_->ModelDir(name));
}

absl::StatusOr<MemoryPlan> EngineImpl::Plan(const PackedModel& model,
                                            const RunnerOptions& options) const {
  return options_.device == Device::kCuda ? PlanCudaMemory(model, options)
                                          : PlanMemory(model, options);
}

absl::StatusOr<std::unique_ptr<Runner>> EngineImpl::MakeRunner(
    std::shared_ptr<const PackedModel> model, const RunnerOptions& options) {
  if (options_.make_runner) return options_.make_runner(std::move(model), options);
  return options_.device == Device::kCuda ? MakeCudaRunner(std::move(model), options)
                                          : MakeCpuRunner(std::move(model), options, pool_);
}

RunnerOptions EngineImpl::ServingOptions(const ModelConfig& config, const MemoryPlan& plan) const {
  RunnerOptions options;
  options.block_size = kBlockSize;
  options.max_sequences = options_.max_sequences;
  options.max_step_tokens = options_.prefill_chunk + options_.max_sequences;
  const int64_t context_blocks = (config.max_positions + kBlockSize - 1) / kBlockSize;
  if (options_.kv_bytes_per_model > 0) {
    options.kv_blocks = options_.kv_bytes_per_model / plan.kv_bytes_per_block;
  } else {
    options.kv_blocks =
        std::min(kDefaultKvBytes / plan.kv_bytes_per_block, kDefaultKvSequences * context_blocks);
  }
  options.kv_blocks = std::max<int64_t>(options.kv_blocks, 1);
  return options;
}

absl::StatusOr<EngineImpl::ModelPtr> EngineImpl::LoadFromDisk(const std::string& name) {
  absl::StatusOr<std::shared_ptr<const PackedModel>> packed = OpenPacked(name);
  if (!packed.ok()) return packed.status();
  const ModelConfig& config = (*packed)->config();
  absl::StatusOr<MemoryPlan> plan = Plan(**packed, RunnerOptions());
  if (!plan.ok()) return plan.status();
  const RunnerOptions options = ServingOptions(config, *plan);
  plan = Plan(**packed, options);
  if (!plan.ok()) return plan.status();
  MemoryShare memory;
  const int64_t bytes =
      plan->weight_bytes + plan->work_bytes + plan->kv_bytes_per_block * options.kv_blocks;
  if (absl::Status status = Reserve(bytes, &memory); !status.ok()) return status;

  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = LoadTokenizer((*packed)->dir());
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<std::unique_ptr<Runner>> runner = MakeRunner(*packed, options);
  if (!runner.ok()) return runner.status();
  SchedulerOptions scheduling;
  scheduling.model = name;
  scheduling.max_queue = options_.max_queue;
  scheduling.max_sequences = options_.max_sequences;
  scheduling.prefill_chunk = options_.prefill_chunk;
  scheduling.park_limit = options_.park_limit;
  scheduling.on_failure = [this](const absl::Status& status) { NoteLoss(status); };
  scheduling.max_context = config.max_positions;
  if (options_.max_context > 0) {
    scheduling.max_context = std::min(scheduling.max_context, options_.max_context);
  }
  return std::make_shared<LoadedModel>(std::move(scheduling), *std::move(runner),
                                       *std::move(tokenizer), std::move(memory), observer_);
}

void EngineImpl::NoteLoss(const absl::Status& status) {
  if (ReasonOf(status) != reason::kDeviceLost || lost_.exchange(true)) return;
  if (options_.on_device_lost) options_.on_device_lost();
}

// The loaded model, kept from eviction while the pointer is held.
absl::StatusOr<EngineImpl::ModelPtr> EngineImpl::Acquire(std::string_view name) {
  if (absl::Status valid = ValidateModelName(name, "model"); !valid.ok()) return valid;
  const std::string key(name);
  std::shared_ptr<LoadAttempt> attempt;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (draining_) return Draining();
    if (entries_.find(key) == entries_.end() && !catalog_->Exists(name)) return NotFound(name);
    Entry& entry = entries_[key];
    entry.last_used = absl::Now();
    if (entry.model != nullptr) return entry.model;
    if (entry.loading != nullptr) {
      attempt = entry.loading;
      changed_.wait(lock, [&] { return attempt->done; });
      return attempt->result;
    }
    attempt = entry.loading = std::make_shared<LoadAttempt>();
  }
  const absl::Time start = absl::Now();
  absl::StatusOr<ModelPtr> result = LoadFromDisk(key);
  NoteLoss(result.status());
  if (observer_ != nullptr) observer_->OnLoaded(name, absl::Now() - start, result.ok());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Entry& entry = entries_[key];
    entry.loading = nullptr;
    entry.error = result.status();
    if (result.ok()) entry.model = *result;
    entry.last_used = absl::Now();
    if (draining_) result = Draining();
    attempt->result = result;
    attempt->done = true;
  }
  changed_.notify_all();
  return result;
}

absl::Status EngineImpl::Load(std::string_view name) { return Acquire(name).status(); }

absl::Status EngineImpl::Unload(std::string_view name) {
  ModelPtr model;  // dropped after the lock
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end()) return catalog_->Exists(name) ? absl::OkStatus() : NotFound(name);
  Entry& entry = found->second;
  if (entry.loading != nullptr) return Busy(name);
  if (entry.model != nullptr && !Idle(entry)) return Busy(name);
  model = std::move(entry.model);
  entry.error = absl::OkStatus();
  if (!entry.pinned) entries_.erase(found);
  return absl::OkStatus();
}

absl::Status EngineImpl::SetPinned(std::string_view name, bool pinned) {
  if (absl::Status valid = ValidateModelName(name, "model"); !valid.ok()) return valid;
  if (!catalog_->Exists(name)) return NotFound(name);
  std::lock_guard<std::mutex> lock(mutex_);
  entries_[std::string(name)].pinned = pinned;
  return absl::OkStatus();
}

ModelStatus EngineImpl::StatusOf(const std::string& name, const Entry& entry) const {
  ModelStatus status;
  status.name = name;
  status.pinned = entry.pinned;
  status.error = entry.error;
  if (entry.loading != nullptr) {
    status.state = LoadState::kLoading;
  } else if (entry.model != nullptr) {
    const EngineStats stats = entry.model->scheduler().Stats();
    status.state = LoadState::kLoaded;
    status.weight_bytes = entry.model->runner().weight_bytes();
    status.kv_bytes = entry.model->runner().kv_bytes();
    status.running = stats.running;
    status.waiting = stats.waiting;
    status.context_length = entry.model->context_length();
  } else if (!entry.error.ok()) {
    status.state = LoadState::kFailed;
  }
  return status;
}

ModelStatus EngineImpl::Status(std::string_view name) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(name);
  return StatusOf(std::string(name), found == entries_.end() ? Entry() : found->second);
}

std::vector<ModelStatus> EngineImpl::Loaded() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<ModelStatus> all;
  for (const auto& [name, entry] : entries_) {
    if (entry.model != nullptr) all.push_back(StatusOf(name, entry));
  }
  return all;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> EngineImpl::TokenizerOf(std::string_view name) {
  if (absl::Status valid = ValidateModelName(name, "model"); !valid.ok()) return valid;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(name);
    if (found != entries_.end() && found->second.model != nullptr) {
      return found->second.model->tokenizer();
    }
  }
  if (!catalog_->Exists(name)) return NotFound(name);
  return LoadTokenizer(catalog_->ModelDir(name));
}

absl::StatusOr<ModelConfig> EngineImpl::ConfigOf(std::string_view name) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(name);
    if (found != entries_.end() && found->second.model != nullptr) {
      return found->second.model->runner().config();
    }
  }
  if (absl::Status valid = ValidateModelName(name, "model"); !valid.ok()) return valid;
  if (!catalog_->Exists(name)) return NotFound(name);
  absl::StatusOr<Manifest> manifest = catalog_->ReadManifest(name);
  if (!manifest.ok()) return manifest.status();
  return ModelConfigFromJson(manifest->config_json);
}

absl::StatusOr<std::shared_ptr<GenerateHandle>> EngineImpl::Generate(
    GenerateRequest request, std::shared_ptr<GenerateSink> sink) {
  absl::StatusOr<ModelPtr> model = Acquire(request.model);
  if (!model.ok()) return model.status();
  return (*model)->scheduler().Submit(std::move(request), std::move(sink));
}

absl::StatusOr<EngineImpl::EvaluationRunner> EngineImpl::MakeEvaluationRunner(
    const EvaluateRequest& request, const std::string& name) {
  absl::StatusOr<std::shared_ptr<const PackedModel>> packed = OpenPacked(name);
  if (!packed.ok()) return packed.status();
  const ModelConfig& config = (*packed)->config();
  if (absl::Status status = CheckEvaluation(request, config); !status.ok()) return status;
  RunnerOptions options = EvaluationRunnerOptions(config, request.context, request.numerics);
  if (options_.device == Device::kCuda) options.kv_dtype = DType::kF16;
  absl::StatusOr<MemoryPlan> plan = Plan(**packed, options);
  if (!plan.ok()) return plan.status();
  EvaluationRunner made;
  const int64_t bytes = plan->weight_bytes + plan->work_bytes +
                        plan->kv_bytes_per_block * options.kv_blocks +
                        EvaluationLogitsBytes(config, options);
  if (absl::Status status = Reserve(bytes, &made.memory); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Runner>> runner = MakeRunner(*packed, options);
  if (!runner.ok()) return runner.status();
  made.runner = *std::move(runner);
  return made;
}

absl::StatusOr<EvaluateResult> EngineImpl::Evaluate(const EvaluateRequest& request,
                                                    const std::function<void(double)>& progress,
                                                    const std::function<bool()>& stop) {
  absl::StatusOr<EvaluationRunner> model = MakeEvaluationRunner(request, request.model);
  if (!model.ok()) return model.status();
  EvaluationRunner reference;
  if (!request.reference.empty()) {
    absl::StatusOr<EvaluationRunner> made = MakeEvaluationRunner(request, request.reference);
    if (!made.ok()) return made.status();
    reference = *std::move(made);
  }
  absl::StatusOr<EvaluateResult> result =
      EvaluateRunners(*model->runner, reference.runner.get(), request, pool_, progress, stop);
  NoteLoss(result.status());
  return result;
}

std::vector<EngineStats> EngineImpl::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<EngineStats> all;
  for (const auto& [name, entry] : entries_) {
    if (entry.model != nullptr) all.push_back(entry.model->scheduler().Stats());
  }
  return all;
}

void EngineImpl::Drain(absl::Time deadline) {
  std::vector<ModelPtr> models;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
    for (const auto& [name, entry] : entries_) {
      if (entry.model != nullptr) models.push_back(entry.model);
    }
  }
  for (const ModelPtr& model : models) model->scheduler().Drain(deadline);
  for (const ModelPtr& model : models) {
    while (model->scheduler().unfinished() > 0) absl::SleepFor(absl::Milliseconds(5));
  }
}

}  // namespace babai
