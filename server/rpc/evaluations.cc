#include "server/rpc/evaluations.h"

#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/reason/reason.h"
#include "server/rpc/call.h"
#include "server/rpc/limits.h"
#include "server/rpc/messages.h"
#include "server/rpc/status.h"

namespace babai {

using State = v1::EvaluateMetadata;

struct Evaluations::Entry {
  int64_t number = 0;
  std::string text;
  EvaluateRequest request;
  State::State state = State::STATE_QUEUED;
  double fraction = 0;
  absl::Time created = absl::Now();
  absl::Time started = absl::InfiniteFuture(), ended = absl::InfiniteFuture();
  std::atomic<bool> cancelled = false;
  absl::StatusOr<EvaluateResult> result = absl::UnknownError("not finished");

  std::string id() const { return absl::StrCat("eval-", number); }
  bool done() const { return ended != absl::InfiniteFuture(); }
};

namespace {

v1::EvaluateResult ToProto(const EvaluateRequest& request, const EvaluateResult& result) {
  v1::EvaluateResult proto;
  proto.set_model(request.model);
  proto.set_perplexity(result.perplexity);
  proto.set_mean_nll(result.mean_nll);
  proto.set_windows(result.windows);
  proto.set_tokens(result.tokens);
  if (!result.has_reference) return proto;
  auto* comparison = proto.mutable_comparison();
  comparison->set_reference(request.reference);
  comparison->set_reference_perplexity(result.reference_perplexity);
  comparison->set_mean_kl(result.mean_kl);
  comparison->set_kl_p99(result.kl_p99);
  comparison->set_kl_p999(result.kl_p999);
  comparison->set_kl_max(result.kl_max);
  comparison->set_top1_agreement(result.top1_agreement);
  return proto;
}

absl::Status Cancelled() {
  return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "",
                "the evaluation was cancelled");
}

}  // namespace

Evaluations::Evaluations(Engine* engine, OnChange on_change)
    : engine_(engine), on_change_(std::move(on_change)), worker_([this] { Run(); }) {}

Evaluations::~Evaluations() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  worker_.join();
}

absl::StatusOr<Operation> Evaluations::Submit(EvaluateRequest request, std::string text) {
  std::lock_guard lock(mutex_);
  if (waiting_.size() >= limits::kWaitingEvaluations) {
    return RefuseQueueFull("too many evaluations are waiting");
  }
  auto entry = std::make_shared<Entry>();
  entry->number = next_++;
  entry->request = std::move(request);
  entry->text = std::move(text);
  entries_[entry->number] = entry;
  waiting_.push_back(entry);
  DropOldest();
  wake_.notify_one();
  return ToOperation(*entry);
}

void Evaluations::DropOldest() {
  for (auto it = entries_.begin();
       it != entries_.end() && entries_.size() > size_t{limits::kKeptEvaluations};) {
    it = it->second->done() ? entries_.erase(it) : std::next(it);
  }
}

void Evaluations::Run() {
  while (true) {
    EntryPtr entry;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      entry = std::move(waiting_.front());
      waiting_.pop_front();
      if (entry->done()) continue;  // cancelled while it waited
      entry->state = State::STATE_RUNNING;
      entry->started = absl::Now();
    }
    on_change_(entry->id());
    Evaluate(*entry);
    on_change_(entry->id());
  }
}

void Evaluations::Evaluate(Entry& entry) {
  const auto stop = [&] { return entry.cancelled || stopping_; };
  const auto progress = [&](double fraction) {
    {
      std::lock_guard lock(mutex_);
      entry.fraction = fraction;
    }
    on_change_(entry.id());
  };
  absl::StatusOr<EvaluateResult> result = absl::UnknownError("not finished");
  absl::Status status = Guarded([&]() -> absl::Status {
    if (!entry.text.empty()) {
      auto tokenizer = engine_->TokenizerOf(entry.request.model);
      if (!tokenizer.ok()) return tokenizer.status();
      auto tokens =
          (*tokenizer)->Encode(entry.text, /*add_special=*/false, /*parse_special=*/false);
      if (!tokens.ok()) return tokens.status();
      entry.request.tokens = *std::move(tokens);
      entry.text = std::string();
    }
    result = engine_->Evaluate(entry.request, progress, stop);
    return result.status();
  });
  if (!status.ok()) result = stop() ? Cancelled() : status;

  std::lock_guard lock(mutex_);
  entry.request.tokens = {};
  entry.ended = absl::Now();
  entry.state = result.ok() ? State::STATE_DONE
                : stop()    ? State::STATE_CANCELLED
                            : State::STATE_FAILED;
  if (result.ok()) entry.fraction = 1;
  entry.result = std::move(result);
}

Operation Evaluations::ToOperation(const Entry& entry) const {
  v1::EvaluateMetadata metadata;
  metadata.set_state(entry.state);
  metadata.set_model(entry.request.model);
  metadata.set_reference(entry.request.reference);
  metadata.set_fraction(entry.fraction);
  *metadata.mutable_create_time() = babai::ToProto(entry.created);
  if (entry.started != absl::InfiniteFuture()) {
    const absl::Time until = entry.done() ? entry.ended : absl::Now();
    *metadata.mutable_elapsed() = babai::ToProto(until - entry.started);
  }
  if (entry.done()) *metadata.mutable_end_time() = babai::ToProto(entry.ended);

  Operation operation;
  operation.set_name(absl::StrCat("operations/", entry.id()));
  operation.mutable_metadata()->PackFrom(metadata);
  operation.set_done(entry.done());
  if (!entry.done()) return operation;
  if (entry.result.ok()) {
    operation.mutable_response()->PackFrom(ToProto(entry.request, *entry.result));
  } else {
    *operation.mutable_error() = ToProtoStatus(entry.result.status());
  }
  return operation;
}

absl::StatusOr<Evaluations::EntryPtr> Evaluations::Find(std::string_view id) const {
  int64_t number = 0;
  if (absl::SimpleAtoi(std::string(id.substr(id.find('-') + 1)), &number)) {
    const auto it = entries_.find(number);
    if (it != entries_.end() && it->second->id() == id) return it->second;
  }
  return Refuse(absl::StatusCode::kNotFound, reason::kJobNotFound, "name",
                absl::StrCat("no evaluation '", std::string(id), "'"));
}

absl::StatusOr<Operation> Evaluations::Get(std::string_view id) const {
  std::lock_guard lock(mutex_);
  const auto entry = Find(id);
  if (!entry.ok()) return entry.status();
  return ToOperation(**entry);
}

// The page token is the number below which the next page begins.
absl::StatusOr<std::vector<Operation>> Evaluations::List(int64_t page_size,
                                                         std::string_view page_token,
                                                         std::string* next_page_token) const {
  int64_t below = INT64_MAX;
  if (!page_token.empty() && !absl::SimpleAtoi(std::string(page_token), &below)) {
    return InvalidField("page_token", "is not one that this server gave");
  }
  std::lock_guard lock(mutex_);
  std::vector<Operation> operations;
  next_page_token->clear();
  for (auto it = entries_.lower_bound(below); it != entries_.begin();) {
    --it;
    if (static_cast<int64_t>(operations.size()) == page_size) {
      *next_page_token = absl::StrCat(it->first + 1);
      break;
    }
    operations.push_back(ToOperation(*it->second));
  }
  return operations;
}

absl::Status Evaluations::Cancel(std::string_view id) {
  std::lock_guard lock(mutex_);
  const auto entry = Find(id);
  if (!entry.ok()) return entry.status();
  Entry& e = **entry;
  e.cancelled = true;
  if (e.state == State::STATE_QUEUED) {
    e.state = State::STATE_CANCELLED;
    e.ended = absl::Now();
    e.result = Cancelled();
  }
  return absl::OkStatus();
}

absl::Status Evaluations::Delete(std::string_view id) {
  std::lock_guard lock(mutex_);
  const auto entry = Find(id);
  if (!entry.ok()) return entry.status();
  if (!(*entry)->done()) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kModelBusy, "name",
                  "the evaluation is not done; cancel it first");
  }
  entries_.erase((*entry)->number);
  return absl::OkStatus();
}

}  // namespace babai
