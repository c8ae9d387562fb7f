// One request inside the scheduler.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/engine/kv_blocks.h"
#include "server/engine/sampling.h"
#include "server/engine/stop_text.h"
#include "server/text/tokenizer.h"

namespace babai {

// Wakes the scheduler's thread. Shared with the handles, which may outlive the scheduler.
class WakeUp {
 public:
  void Notify();
  // Returns on a Notify() since the last return, or at `until`.
  void WaitUntil(absl::Time until);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool notified_ = false;
};

// What callers can ask of a sequence, from any thread.
class SequenceControl final : public GenerateHandle {
 public:
  explicit SequenceControl(std::shared_ptr<WakeUp> wake) : wake_(std::move(wake)) {}
  void Cancel() override;
  void Resume() override;
  bool cancelled() const { return cancelled_; }
  bool TakeResumed() { return resumed_.exchange(false); }

 private:
  const std::shared_ptr<WakeUp> wake_;
  std::atomic<bool> cancelled_ = false, resumed_ = false;
};

// Owned by the scheduler's thread once submitted.
class Sequence {
 public:
  // `max_tokens` > 0 is what may be generated; `arrived` orders the queue. Ids from `text_vocab` on
  // have no text: embeddings are often padded beyond the tokenizer's vocabulary.
  Sequence(GenerateRequest request, std::shared_ptr<GenerateSink> sink,
           std::shared_ptr<SequenceControl> control, const ModelConfig& config,
           std::unique_ptr<Detokenizer> detokenizer, int64_t text_vocab, int64_t max_tokens,
           absl::Time arrived);

  // Tokens without KV yet.
  int64_t uncached() const { return tokens.size() - cached; }
  // Whether its next step is one token; else it is a prefill chunk.
  bool decodes() const { return !parked && uncached() == 1; }
  int64_t generated() const { return tokens.size() - request.prompt.size(); }
  bool started() const { return admitted != absl::InfinitePast(); }

  // How a runner may choose the next token.
  TokenChoice NextChoice() const { return sampler_.ChoiceAt(tokens.size()); }
  // The next token from the logits after the last one, which it changes.
  int32_t Pick(absl::Span<float> logits) { return sampler_.Pick(logits, tokens.size()); }
  // Takes the next token and sends it to the sink; the log-probability is that of the last Pick().
  // True: the sequence has ended and `finish` says why.
  bool Accept(int32_t token, absl::Time now);
  // Lets go of the KV blocks and completes `finish`.
  void Close(absl::Time now);
  // The final message, once, after Close().
  void SendFinish() { sink_->OnFinish(finish); }
  void Fail(FinishReason reason, absl::Status status);

  GenerateRequest request;
  std::shared_ptr<SequenceControl> control;
  std::vector<int32_t> tokens;  // prompt and generated
  std::vector<KvBlock> blocks;
  int64_t cached = 0;   // leading tokens that have KV
  bool parked = false;  // its reader is behind
  bool ended = false;   // Close() was called
  absl::Time arrived, admitted = absl::InfinitePast();
  absl::Time first_token = absl::InfinitePast(), last_token = absl::InfinitePast();
  absl::Time parked_since = absl::InfiniteFuture();
  Finish finish;

 private:
  bool EndsAt(int32_t token, FinishReason* reason) const;
  void EndText(Delta* delta);
  absl::StatusOr<std::string> TextOf(int32_t token);

  std::shared_ptr<GenerateSink> sink_;
  const ModelConfig& config_;
  std::unique_ptr<Detokenizer> detokenizer_;
  Sampler sampler_;
  StopText stops_;
  int64_t text_vocab_, max_tokens_;
};

}  // namespace babai
