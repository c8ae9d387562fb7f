#include "server/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 64;
constexpr size_t kMaxStopTokens = 256;

absl::Status CheckTokens(absl::Span<const int32_t> tokens, int64_t vocab, std::string_view field) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab) continue;
    return InvalidField(
        field, absl::StrCat("token ", tokens[i], " at index ", i, " is not in [0, ", vocab, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const std::vector<std::string>& stops) {
  if (stops.size() > kMaxStops) {
    return InvalidField("stop",
                        absl::StrCat("holds ", stops.size(), " strings, at most ", kMaxStops));
  }
  for (const std::string& stop : stops) {
    if (!stop.empty() && stop.size() <= kMaxStopBytes) continue;
    return InvalidField("stop", absl::StrCat("a stop string has 1 to ", kMaxStopBytes,
                                             " bytes, one has ", stop.size()));
  }
  return absl::OkStatus();
}

absl::Status Draining() {
  return Refuse(absl::StatusCode::kUnavailable, reason::kDraining, "",
                "the server is stopping; send the request to another one");
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, Runner* runner, const Tokenizer* tokenizer,
                     EngineObserver* observer, std::function<absl::Time()> clock)
    : options_(std::move(options)),
      runner_(runner),
      tokenizer_(tokenizer),
      observer_(observer),
      clock_(std::move(clock)),
      wake_(std::make_shared<WakeUp>()),
      pool_(runner->options().kv_blocks) {
  const int64_t tokens = runner->options().max_step_tokens;
  const int64_t sequences = options_.max_sequences;
  arrays_.tokens.reserve(tokens);
  arrays_.positions.reserve(tokens);
  arrays_.begin.reserve(sequences + 1);
  arrays_.context.reserve(sequences);
  arrays_.rows.reserve(sequences);
  arrays_.choices.reserve(sequences);
  arrays_.tables.reserve(sequences * std::min(BlocksFor(options_.max_context), pool_.size()));
  arrays_.logits = runner->LogitsBuffer(sequences);
  if (arrays_.logits == nullptr) {
    arrays_.own_logits.resize(sequences * runner->config().vocab);
    arrays_.logits = arrays_.own_logits.data();
  }
  plan_.reserve(sequences);
  stats_.model = options_.model;
  stats_.kv_blocks = pool_.size();
  published_ = stats_;
}

Scheduler::~Scheduler() {
  Drain(absl::InfinitePast());
  RunStep();
}

int64_t Scheduler::BlocksFor(int64_t tokens) const {
  const int64_t size = runner_->options().block_size;
  return (tokens + size - 1) / size;
}

// Tokens that may be generated after this prompt.
int64_t Scheduler::Room(const GenerateRequest& request) const {
  const int64_t pool_tokens = pool_.size() * runner_->options().block_size;
  return std::min(options_.max_context, pool_tokens) - static_cast<int64_t>(request.prompt.size());
}

absl::Status Scheduler::CheckLength(const GenerateRequest& request) const {
  if (request.prompt.empty()) return InvalidField("prompt", "holds no token");
  if (request.max_tokens < 0) {
    return InvalidField("max_tokens", absl::StrCat("must be at least 0, got ", request.max_tokens));
  }
  const int64_t room = Room(request);
  if (room >= std::max<int64_t>(request.max_tokens, 1)) return absl::OkStatus();
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kContextTooLong,
                room < 1 ? "prompt" : "max_tokens",
                absl::StrCat("a prompt of ", request.prompt.size(), " tokens and ",
                             std::max<int64_t>(request.max_tokens, 1),
                             " to generate do not fit a context of ",
                             room + static_cast<int64_t>(request.prompt.size())));
}

absl::Status Scheduler::Check(const GenerateRequest& request) const {
  const int64_t vocab = runner_->config().vocab;
  absl::Status status = CheckLength(request);
  if (status.ok()) status = CheckTokens(request.prompt, vocab, "prompt");
  if (status.ok()) status = ValidateSampling(request.sampling, vocab);
  if (status.ok()) status = CheckStops(request.stop);
  if (status.ok() && request.stop_token_ids.size() > kMaxStopTokens) {
    status = InvalidField("stop_token_ids", absl::StrCat("holds ", request.stop_token_ids.size(),
                                                         " tokens, at most ", kMaxStopTokens));
  }
  if (status.ok()) status = CheckTokens(request.stop_token_ids, vocab, "stop_token_ids");
  return status;
}

absl::StatusOr<std::shared_ptr<GenerateHandle>> Scheduler::Submit(
    GenerateRequest request, std::shared_ptr<GenerateSink> sink) {
  if (absl::Status status = Check(request); !status.ok()) return status;
  auto control = std::make_shared<SequenceControl>(wake_);
  const int64_t max_tokens = request.max_tokens > 0 ? request.max_tokens : Room(request);
  std::unique_ptr<Detokenizer> detokenizer =
      tokenizer_->NewDetokenizer(request.skip_special_tokens);
  auto sequence = std::make_unique<Sequence>(std::move(request), std::move(sink), control,
                                             runner_->config(), std::move(detokenizer),
                                             tokenizer_->vocab_size(), max_tokens, clock_());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (draining_) return Draining();
    const int64_t waiting = published_.waiting + static_cast<int64_t>(arrivals_.size());
    if (waiting >= options_.max_queue) {
      return Refuse(absl::StatusCode::kResourceExhausted, reason::kQueueFull, "",
                    absl::StrCat(waiting, " requests are waiting already; try again later"));
    }
    ++unfinished_;
    arrivals_.push_back(std::move(sequence));
  }
  wake_->Notify();
  return control;
}

void Scheduler::Drain(absl::Time deadline) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
    drain_deadline_ = std::min(drain_deadline_, deadline);
  }
  wake_->Notify();
}

EngineStats Scheduler::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  EngineStats stats = published_;
  stats.waiting += arrivals_.size();
  return stats;
}

void Scheduler::TakeArrivals() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (SequencePtr& sequence : arrivals_) waiting_.push_back(std::move(sequence));
  published_.waiting += arrivals_.size();
  arrivals_.clear();
  stop_waiting_ = draining_;
  stop_running_ = drain_deadline_;
}

void Scheduler::PublishStats() {
  stats_.running = running_.size();
  stats_.waiting = waiting_.size();
  stats_.kv_blocks_used = pool_.size() - pool_.free();
  std::lock_guard<std::mutex> lock(mutex_);
  published_ = stats_;
}

void Scheduler::Unpark(Sequence& sequence) {
  if (!sequence.control->TakeResumed()) return;
  sequence.parked = false;
  sequence.parked_since = absl::InfiniteFuture();
}

// Whether something other than its own tokens ends a sequence now, and why.
bool Scheduler::MustEnd(Sequence& sequence, absl::Time now) const {
  if (!lost_.ok()) {
    sequence.Fail(FinishReason::kError, lost_);
  } else if (sequence.control->cancelled()) {
    sequence.Fail(FinishReason::kCancelled,
                  Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "", "cancelled"));
  } else if (now >= sequence.request.deadline) {
    sequence.Fail(FinishReason::kCancelled, absl::DeadlineExceededError("the deadline has passed"));
  } else if (now >= stop_running_ || (stop_waiting_ && !sequence.started())) {
    sequence.Fail(FinishReason::kCancelled, Draining());
  } else if (sequence.parked && now - sequence.parked_since >= options_.park_limit) {
    sequence.Fail(FinishReason::kError,
                  Refuse(absl::StatusCode::kResourceExhausted, reason::kSlowReader, "",
                         absl::StrCat("the reader was behind for ",
                                      absl::FormatDuration(options_.park_limit))));
  } else {
    return false;
  }
  return true;
}

void Scheduler::Reap(absl::Time now) {
  const auto visit = [&](Sequence& sequence) {
    Unpark(sequence);
    if (MustEnd(sequence, now)) End(sequence, now);
  };
  for (SequencePtr& sequence : waiting_) visit(*sequence);
  for (SequencePtr& sequence : running_) visit(*sequence);
  RemoveEnded();
}

void Scheduler::End(Sequence& sequence, absl::Time now) {
  sequence.Close(now);
  if (observer_ != nullptr) {
    observer_->OnFinished(options_.model, sequence.finish, now - sequence.arrived);
  }
  sequence.SendFinish();  // last: whoever waits for it finds everything counted
}

void Scheduler::RemoveEnded() {
  const auto ended = [](const SequencePtr& sequence) { return sequence->ended; };
  const int64_t before = waiting_.size() + running_.size();
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), ended), waiting_.end());
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
  unfinished_ -= before - static_cast<int64_t>(waiting_.size() + running_.size());
}

// Gives a sequence the blocks for all its tokens. Requires that they are free.
void Scheduler::Grow(Sequence& sequence) {
  const size_t wanted = BlocksFor(sequence.tokens.size());
  while (sequence.blocks.size() < wanted) sequence.blocks.push_back(pool_.Take());
}

// Whether a sequence may run now: a slot, blocks for all its tokens, and one block to spare for
// each that runs already, so that it does not push out others with its first words.
bool Scheduler::Fits(const Sequence& sequence) const {
  const int64_t running = running_.size();
  return running < options_.max_sequences &&
         BlocksFor(sequence.tokens.size()) + running <= pool_.free();
}

void Scheduler::Admit(absl::Time now) {
  const auto parked = [](const SequencePtr& sequence) { return sequence->parked; };
  for (;;) {
    const auto next = std::find_if_not(waiting_.begin(), waiting_.end(), parked);
    if (next == waiting_.end()) return;
    if (!Fits(**next)) {
      // Those whose readers are behind give way: they can compute theirs again.
      if (std::none_of(running_.begin(), running_.end(), parked)) return;
      PreemptYoungest();
      continue;
    }
    Grow(**next);
    if (!(*next)->started()) (*next)->admitted = now;
    running_.push_back(std::move(*next));
    waiting_.erase(next);
  }
}

// The youngest sequence, a parked one if there is any, goes back to the queue without its blocks.
void Scheduler::PreemptYoungest() {
  auto victim = std::find_if(running_.rbegin(), running_.rend(),
                             [](const SequencePtr& s) { return s->parked; });
  if (victim == running_.rend()) victim = running_.rbegin();
  SequencePtr sequence = std::move(*victim);
  running_.erase(std::next(victim).base());
  sequence->blocks.clear();
  sequence->cached = 0;
  ++stats_.preemptions;
  const auto place = std::find_if(waiting_.begin(), waiting_.end(), [&](const SequencePtr& other) {
    return other->arrived > sequence->arrived;
  });
  waiting_.insert(place, std::move(sequence));
}

// Blocks that the next decode step needs and does not have.
int64_t Scheduler::MissingBlocks() const {
  int64_t missing = 0;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->decodes()) continue;
    missing += BlocksFor(sequence->tokens.size()) - static_cast<int64_t>(sequence->blocks.size());
  }
  return missing;
}

// Ends with one sequence at the latest: alone, any that was accepted fits.
void Scheduler::PlanDecodes() {
  while (MissingBlocks() > pool_.free()) PreemptYoungest();
  for (const SequencePtr& sequence : running_) {
    if (!sequence->decodes()) continue;
    Grow(*sequence);
    plan_.push_back({sequence.get(), 1});
  }
}

void Scheduler::PlanPrefills() {
  int64_t budget = options_.prefill_chunk;
  for (const SequencePtr& sequence : running_) {
    if (budget == 0) return;
    if (sequence->parked || sequence->uncached() == 1) continue;
    const int64_t tokens = std::min(budget, sequence->uncached());
    plan_.push_back({sequence.get(), tokens});
    budget -= tokens;
  }
}

StepBatch Scheduler::FillBatch(absl::Span<const Slot> slots) {
  Arrays& a = arrays_;
  for (auto* array : {&a.tokens, &a.positions, &a.begin, &a.context, &a.tables, &a.rows}) {
    array->clear();
  }
  a.choices.clear();
  size_t max_blocks = 0;
  for (const Slot& slot : slots) max_blocks = std::max(max_blocks, slot.sequence->blocks.size());
  a.begin.push_back(0);
  for (const auto& [sequence, count] : slots) {
    for (int64_t i = 0; i < count; ++i) {
      a.tokens.push_back(sequence->tokens[sequence->cached + i]);
      a.positions.push_back(sequence->cached + i);
    }
    a.begin.push_back(a.tokens.size());
    a.context.push_back(sequence->cached + count);
    for (size_t i = 0; i < max_blocks; ++i) {
      a.tables.push_back(i < sequence->blocks.size() ? sequence->blocks[i].id() : 0);
    }
    if (count < sequence->uncached()) continue;
    a.rows.push_back(a.tokens.size() - 1);
    if (runner_->ChoosesTokens()) a.choices.push_back(sequence->NextChoice());
  }
  return {a.tokens, a.positions,
          a.begin,  a.context,
          a.tables, static_cast<int32_t>(max_blocks),
          a.rows,   absl::MakeSpan(a.choices)};
}

// A step that fails is repeated for each of its sequences alone, so that one can not end the
// others.
void Scheduler::RunSlots(absl::Span<const Slot> slots) {
  const StepBatch batch = FillBatch(slots);
  const absl::Status status = runner_->Step(batch, arrays_.logits);
  ++stats_.steps;
  if (status.ok()) return Advance(slots);
  if (options_.on_failure) options_.on_failure(status);
  if (ReasonOf(status) == reason::kDeviceLost) return FailAll(status);
  if (slots.size() == 1) {
    slots[0].sequence->Fail(FinishReason::kError, status);
    End(*slots[0].sequence, clock_());
    return;
  }
  for (size_t i = 0; i < slots.size() && lost_.ok(); ++i) RunSlots(slots.subspan(i, 1));
}

// Of no use to run any of them again: nothing in this process can use the device.
void Scheduler::FailAll(const absl::Status& status) {
  lost_ = status;
  const auto fail = [&](const SequencePtr& sequence) {
    if (sequence->ended) return;
    sequence->Fail(FinishReason::kError, lost_);
    End(*sequence, clock_());
  };
  std::for_each(running_.begin(), running_.end(), fail);
  std::for_each(waiting_.begin(), waiting_.end(), fail);
}

void Scheduler::Advance(absl::Span<const Slot> slots) {
  const absl::Time now = clock_();
  const int64_t vocab = runner_->config().vocab;
  size_t row = 0;
  for (const auto& [sequence, count] : slots) {
    const bool last = count == sequence->uncached();
    sequence->cached += count;
    if (!last) continue;
    const bool chosen = row < arrays_.choices.size() && arrays_.choices[row].by_runner;
    const int32_t token = chosen
                              ? arrays_.choices[row].token
                              : sequence->Pick(absl::MakeSpan(arrays_.logits + row * vocab, vocab));
    ++row;
    AcceptToken(*sequence, token, now);
  }
}

void Scheduler::AcceptToken(Sequence& sequence, int32_t token, absl::Time now) {
  const absl::Time previous = sequence.last_token;
  const bool ended = sequence.Accept(token, now);
  ++stats_.generation_tokens;
  if (previous == absl::InfinitePast()) stats_.prompt_tokens += sequence.request.prompt.size();
  if (observer_ != nullptr && previous == absl::InfinitePast()) {
    observer_->OnFirstToken(options_.model, now - sequence.arrived,
                            sequence.admitted - sequence.arrived);
  } else if (observer_ != nullptr) {
    observer_->OnInterToken(options_.model, now - previous);
  }
  if (ended) End(sequence, now);
}

bool Scheduler::RunStep() {
  TakeArrivals();
  const absl::Time now = clock_();
  Reap(now);
  Admit(now);
  plan_.clear();
  PlanDecodes();
  PlanPrefills();
  if (!plan_.empty()) RunSlots(plan_);
  RemoveEnded();
  PublishStats();
  return !plan_.empty();
}

absl::Time Scheduler::NextEvent() const {
  absl::Time next = absl::InfiniteFuture();
  const auto visit = [&](const SequencePtr& sequence) {
    next = std::min({next, sequence->request.deadline, stop_running_});
    if (sequence->parked) next = std::min(next, sequence->parked_since + options_.park_limit);
  };
  for (const SequencePtr& sequence : waiting_) visit(sequence);
  for (const SequencePtr& sequence : running_) visit(sequence);
  return next;
}

}  // namespace babai
