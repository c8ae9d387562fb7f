#include "server/engine/sequence.h"

#include <algorithm>
#include <utility>

namespace babai {
namespace {

constexpr int64_t kMaxUndelivered = 64;  // deltas a reader may be behind

}  // namespace

void WakeUp::Notify() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    notified_ = true;
  }
  changed_.notify_one();
}

void WakeUp::WaitUntil(absl::Time until) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto notified = [this] { return notified_; };
  if (until == absl::InfiniteFuture()) {
    changed_.wait(lock, notified);
  } else {
    const absl::Duration left = until - absl::Now();
    changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))), notified);
  }
  notified_ = false;
}

void SequenceControl::Cancel() {
  cancelled_ = true;
  wake_->Notify();
}

void SequenceControl::Resume() {
  resumed_ = true;
  wake_->Notify();
}

Sequence::Sequence(GenerateRequest r, std::shared_ptr<GenerateSink> sink,
                   std::shared_ptr<SequenceControl> handle, const ModelConfig& config,
                   std::unique_ptr<Detokenizer> detokenizer, int64_t text_vocab, int64_t max_tokens,
                   absl::Time now)
    : request(std::move(r)),
      control(std::move(handle)),
      tokens(request.prompt),
      arrived(now),
      sink_(std::move(sink)),
      config_(config),
      detokenizer_(std::move(detokenizer)),
      sampler_(request.sampling, config.vocab, request.logprobs),
      stops_(request.stop, request.include_stop),
      text_vocab_(text_vocab),
      max_tokens_(max_tokens) {
  tokens.reserve(tokens.size() + std::min<int64_t>(max_tokens, 4096));
  for (int32_t token : request.prompt) sampler_.ObservePrompt(token);
  finish.prompt_tokens = request.prompt.size();
  finish.seed = request.sampling.seed;
}

bool Sequence::EndsAt(int32_t token, FinishReason* reason) const {
  const auto& stops = request.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    *reason = FinishReason::kStopToken;
    return true;
  }
  *reason = FinishReason::kEos;
  return !request.ignore_eos &&
         std::find(config_.eos.begin(), config_.eos.end(), token) != config_.eos.end();
}

absl::StatusOr<std::string> Sequence::TextOf(int32_t token) {
  return token < text_vocab_ ? detokenizer_->Push(token) : std::string();
}

// Appends what the detokenizer and the stop strings still hold.
void Sequence::EndText(Delta* delta) {
  const StopText::Piece piece = stops_.Push(detokenizer_->Flush());
  delta->text += piece.text;
  if (piece.matched.empty()) {
    delta->text += stops_.Flush();
    return;
  }
  finish.reason = FinishReason::kStopString;
  finish.matched_stop = piece.matched;
}

bool Sequence::Accept(int32_t token, absl::Time now) {
  sampler_.Observe(token);
  tokens.push_back(token);
  ++finish.completion_tokens;
  if (first_token == absl::InfinitePast()) first_token = now;
  last_token = now;

  Delta delta;
  delta.token_ids.push_back(token);
  if (request.logprobs) delta.logprobs.push_back(sampler_.last_logprob());
  bool ended = EndsAt(token, &finish.reason);
  const bool shown = !ended || (finish.reason == FinishReason::kStopToken && request.include_stop);
  StopText::Piece piece;
  if (shown) {
    absl::StatusOr<std::string> text = TextOf(token);
    if (!text.ok()) {
      Fail(FinishReason::kError, text.status());
      return true;
    }
    piece = stops_.Push(*text);
    delta.text = piece.text;
  }
  if (!piece.matched.empty()) {
    ended = true;
    finish.reason = FinishReason::kStopString;
    finish.matched_stop = piece.matched;
  } else {
    if (!ended && generated() >= max_tokens_) {
      ended = true;
      finish.reason = FinishReason::kLength;
    }
    if (ended) EndText(&delta);
  }
  if (sink_->OnDelta(std::move(delta)) >= kMaxUndelivered && !ended) {
    parked = true;
    parked_since = now;
  }
  return ended;
}

void Sequence::Fail(FinishReason reason, absl::Status status) {
  finish.reason = reason;
  finish.status = std::move(status);
}

void Sequence::Close(absl::Time now) {
  ended = true;
  blocks.clear();
  const absl::Time start = started() ? admitted : now;
  const absl::Time first = first_token != absl::InfinitePast() ? first_token : now;
  finish.queue_time = start - arrived;
  finish.prefill_time = started() ? first - start : absl::ZeroDuration();
  finish.decode_time = now - first;
}

}  // namespace babai
