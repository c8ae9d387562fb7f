// Continuous batching for one model. Every step carries one token of each running sequence and,
// beside them, up to prefill_chunk prompt tokens: a long prompt never holds up the others.
//
//   admission   first come, first served: when the KV blocks of the whole prompt are free, with one
//   to
//               spare for each running sequence
//   out of KV   the youngest sequence gives its blocks back and later computes them again from its
//               tokens; parked ones (their reader is behind) go first, also when others wait
//   lost device all end with DEVICE_LOST
//   end         stop string, stop id, end of text, length, cancel, deadline, reader too slow
//
// Runs on a Runner and a clock that tests replace. Submit(), Drain(), Stats() and Load figures may
// be called from any thread; the rest belongs to the thread that calls RunStep().
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/runner.h"
#include "server/engine/sequence.h"

namespace babai {

struct SchedulerOptions {
  std::string model;
  int64_t max_queue = 256;
  int64_t max_sequences = 32;
  int64_t prefill_chunk = 256;
  int64_t max_context = 0;  // tokens of a sequence, prompt and generated
  absl::Duration park_limit = absl::Seconds(10);
  // Told why a step failed, on the thread that called RunStep(). May be null.
  std::function<void(const absl::Status&)> on_failure;
};

class Scheduler {
 public:
  // The runner's options allow max_sequences and prefill_chunk + max_sequences tokens a step.
  // Runner, tokenizer and observer (may be null) must outlive the scheduler.
  Scheduler(SchedulerOptions options, Runner* runner, const Tokenizer* tokenizer,
            EngineObserver* observer, std::function<absl::Time()> clock);
  ~Scheduler();

  // Checks the request against the model and queues it. Errors are those of Engine::Generate;
  // Unavailable DRAINING.
  absl::StatusOr<std::shared_ptr<GenerateHandle>> Submit(GenerateRequest request,
                                                         std::shared_ptr<GenerateSink> sink);

  // One step, if any sequence can go on. False: nothing to do until NextEvent() or a wake-up.
  bool RunStep();
  // When a deadline or a reader's limit passes next.
  absl::Time NextEvent() const;
  const std::shared_ptr<WakeUp>& wake() const { return wake_; }

  // No more requests; those that have not started end at once, the others at `deadline`.
  void Drain(absl::Time deadline);
  // Submitted and not finished.
  int64_t unfinished() const { return unfinished_; }
  EngineStats Stats() const;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;
  struct Slot {  // a running sequence's share of a step
    Sequence* sequence;
    int64_t tokens;
  };

  absl::Status Check(const GenerateRequest& request) const;
  absl::Status CheckLength(const GenerateRequest& request) const;
  int64_t Room(const GenerateRequest& request) const;
  void TakeArrivals();
  void Reap(absl::Time now);
  bool MustEnd(Sequence& sequence, absl::Time now) const;
  void Unpark(Sequence& sequence);
  void Admit(absl::Time now);
  bool Fits(const Sequence& sequence) const;
  void Grow(Sequence& sequence);
  int64_t MissingBlocks() const;
  void PlanDecodes();
  void PlanPrefills();
  void PreemptYoungest();
  StepBatch FillBatch(absl::Span<const Slot> slots);
  void RunSlots(absl::Span<const Slot> slots);
  void Advance(absl::Span<const Slot> slots);
  void FailAll(const absl::Status& status);
  void AcceptToken(Sequence& sequence, int32_t token, absl::Time now);
  void End(Sequence& sequence, absl::Time now);
  void RemoveEnded();
  void PublishStats();
  int64_t BlocksFor(int64_t tokens) const;

  const SchedulerOptions options_;
  Runner* const runner_;
  const Tokenizer* const tokenizer_;
  EngineObserver* const observer_;
  const std::function<absl::Time()> clock_;
  const std::shared_ptr<WakeUp> wake_;
  std::atomic<int64_t> unfinished_ = 0;

  mutable std::mutex mutex_;  // guards the four below
  std::vector<SequencePtr> arrivals_;
  EngineStats published_;
  bool draining_ = false;
  absl::Time drain_deadline_ = absl::InfiniteFuture();

  EngineStats stats_;
  absl::Status lost_;          // not OK: the device has failed
  bool stop_waiting_ = false;  // draining_ and drain_deadline_ as this step saw them
  absl::Time stop_running_ = absl::InfiniteFuture();
  KvBlockPool pool_;
  std::deque<SequencePtr> waiting_;   // by arrival
  std::vector<SequencePtr> running_;  // by admission, oldest first
  std::vector<Slot> plan_;

  // What a StepBatch points to; sized once.
  struct Arrays {
    std::vector<int32_t> tokens, positions, begin, context, tables, rows;
    std::vector<TokenChoice> choices;  // of rows; empty where the runner does not choose
    float* logits = nullptr;           // a row a sequence
    std::vector<float> own_logits;     // where the runner has none
  } arrays_;
};

}  // namespace babai
