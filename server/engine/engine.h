// Serving: loaded models, a bounded queue and a loop a model that batches its sequences
// continuously.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/runner.h"
#include "server/engine/sampling.h"
#include "server/store/catalog.h"
#include "server/text/tokenizer.h"

namespace babai {

struct GenerateRequest {
  std::string model;
  std::vector<int32_t> prompt;  // never empty; the caller tokenized it
  SamplingParams sampling;
  int64_t max_tokens = 0;         // 0 = as much as the context holds
  std::vector<std::string> stop;  // stop strings, at most 16 of 64 bytes
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;  // keep the stop string in the text
  bool skip_special_tokens = true;
  bool logprobs = false;
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason { kEos, kStopString, kStopToken, kLength, kCancelled, kError };
std::string_view FinishReasonName(FinishReason reason);  // "eos", "stop_string", ...

struct Delta {
  std::string text;  // may be empty: characters not complete yet
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;  // as asked
};

struct Finish {
  absl::Status status;  // not OK: the stream ends with this error
  FinishReason reason = FinishReason::kEos;
  std::string matched_stop;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  uint64_t seed = 0;
  absl::Duration queue_time, prefill_time, decode_time;
};

// Receives a sequence's output on the engine's thread: must return at once and not block.
// OnDelta may be called until OnFinish, which comes exactly once.
class GenerateSink {
 public:
  virtual ~GenerateSink() = default;
  // Returns how many deltas are undelivered; at 64 the sequence is parked until Resume().
  virtual int64_t OnDelta(Delta delta) = 0;
  virtual void OnFinish(Finish finish) = 0;
};

// Handle of a running request. Dropping it does not cancel.
class GenerateHandle {
 public:
  virtual ~GenerateHandle() = default;
  virtual void Cancel() = 0;  // KV blocks are free within one step; OnFinish still comes
  virtual void Resume() = 0;  // the sink was drained; a parked sequence goes on
};

enum class LoadState { kUnloaded, kLoading, kLoaded, kFailed };

struct ModelStatus {
  std::string name;
  LoadState state = LoadState::kUnloaded;
  bool pinned = false;
  int64_t weight_bytes = 0, kv_bytes = 0;
  int64_t running = 0, waiting = 0;
  int64_t context_length = 0;
  absl::Status error;
};

// Plain counters the metrics page exports (server/http reads them). All cumulative but the gauges.
struct EngineStats {
  std::string model;
  int64_t running = 0, waiting = 0;
  int64_t kv_blocks_used = 0, kv_blocks = 0;
  int64_t prompt_tokens = 0, generation_tokens = 0, preemptions = 0, steps = 0;
};

// Called on engine threads with finished figures; server/http turns them into histograms.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnFirstToken(std::string_view model, absl::Duration since_arrival,
                            absl::Duration queued) {}
  virtual void OnInterToken(std::string_view model, absl::Duration gap) {}
  virtual void OnFinished(std::string_view model, const Finish& finish, absl::Duration end_to_end) {
  }
  virtual void OnLoaded(std::string_view model, absl::Duration took, bool ok) {}
};

enum class Device { kCpu, kCuda };

struct EngineOptions {
  Device device = Device::kCpu;    // of all loaded models
  int threads = 0;                 // 0 = all
  int64_t max_queue = 256;         // waiting requests a model; more: RESOURCE_EXHAUSTED QUEUE_FULL
  int64_t max_sequences = 32;      // running sequences a model
  int64_t memory_limit_bytes = 0;  // weights and KV of all loaded models, on their device; 0 = 80 %
                                   // of the host's memory, or 90 % of what the GPU has free
  int64_t kv_bytes_per_model = 0;  // 0 = min(1 GiB, a context of max_positions for 8 sequences)
  int64_t max_context = 0;         // 0 = the model's own
  int64_t prefill_chunk = 256;     // prompt tokens a step at most
  absl::Duration park_limit = absl::Seconds(10);  // a parked sequence then ends with SLOW_READER
  // Called once, on any thread, when the device has failed: from then on every request ends with
  // DEVICE_LOST. Must return at once and call nothing of the engine. May be null.
  std::function<void()> on_device_lost;
  // Makes the runners in place of the device's own; null outside tests.
  using RunnerFactory = std::function<absl::StatusOr<std::unique_ptr<Runner>>(
      std::shared_ptr<const PackedModel>, const RunnerOptions&)>;
  RunnerFactory make_runner;
};

struct EvaluateRequest {
  std::string model;
  std::string reference;        // empty = none
  std::vector<int32_t> tokens;  // the whole text, tokenized without special tokens
  int64_t context = 1024;       // window length C; C - 1 predictions a window
  int64_t max_windows = 0;      // 0 = all full windows
  Numerics numerics = Numerics::kReference;
};

struct EvaluateResult {
  double perplexity = 0, mean_nll = 0;
  int64_t windows = 0, tokens = 0;  // tokens = predictions scored
  bool has_reference = false;
  double reference_perplexity = 0, mean_kl = 0, kl_p99 = 0, kl_p999 = 0, kl_max = 0,
         top1_agreement = 0;
};

// Thread-safe.
class Engine {
 public:
  // InvalidArgument names the option; FailedPrecondition DEVICE_UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options, Catalog* catalog,
                                                        EngineObserver* observer);
  virtual ~Engine() = default;

  // Loads if needed (LRU models that are idle and not pinned make room). A loaded model is returned
  // at once; concurrent calls for one model share one load. NotFound MODEL_NOT_FOUND;
  // ResourceExhausted OUT_OF_MEMORY with bytes needed and free.
  virtual absl::Status Load(std::string_view name) = 0;
  virtual absl::Status Unload(
      std::string_view name) = 0;  // FailedPrecondition MODEL_BUSY while sequences run
  virtual absl::Status SetPinned(std::string_view name, bool pinned) = 0;
  virtual ModelStatus Status(std::string_view name) const = 0;
  virtual std::vector<ModelStatus> Loaded() const = 0;

  // Tokenizer and configuration of a model, loaded or not.
  virtual absl::StatusOr<std::shared_ptr<const Tokenizer>> TokenizerOf(std::string_view name) = 0;
  virtual absl::StatusOr<ModelConfig> ConfigOf(std::string_view name) = 0;

  // Loads the model if needed, checks the request and queues it.
  // InvalidArgument names the field; CONTEXT_TOO_LONG with the numbers; ResourceExhausted
  // QUEUE_FULL.
  virtual absl::StatusOr<std::shared_ptr<GenerateHandle>> Generate(
      GenerateRequest request, std::shared_ptr<GenerateSink> sink) = 0;

  // Runs on the caller's thread with a runner of its own. `progress` (may be null) gets 0..1;
  // `stop` is polled.
  virtual absl::StatusOr<EvaluateResult> Evaluate(const EvaluateRequest& request,
                                                  const std::function<void(double)>& progress,
                                                  const std::function<bool()>& stop) = 0;

  virtual std::vector<EngineStats> Stats() const = 0;

  // Stops admitting; running sequences may end until `deadline`, then they finish as kCancelled
  // with DRAINING.
  virtual void Drain(absl::Time deadline) = 0;
};

}  // namespace babai
