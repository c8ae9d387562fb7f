#include "server/rpc/generation_service.h"

#include <utility>

#include "server/rpc/generation_call.h"
#include "server/rpc/limits.h"
#include "server/rpc/messages.h"

namespace babai {
namespace {

// Output on its way from the engine's thread to gRPC's. While one message is being written, further
// deltas are merged into the next, so a client that keeps up gets one message a token and one that
// lags behind gets fewer, larger ones; their number before merging is what the engine is told.
class StreamSink final : public GenerationSink {
 public:
  using Reactor = grpc::ServerWriteReactor<v1::GenerateResponse>;

  explicit StreamSink(Reactor* reactor) : reactor_(reactor) {}

  void OnPrompt(v1::PromptInfo info) override {
    std::lock_guard lock(mutex_);
    *prompt_.mutable_prompt_info() = std::move(info);
    has_prompt_ = true;
  }

  int64_t OnDelta(Delta delta) override {
    std::lock_guard lock(mutex_);
    if (closed_) return 0;
    v1::Delta& pending = *pending_.mutable_delta();
    pending.mutable_text()->append(delta.text);
    pending.mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    pending.mutable_logprobs()->Add(delta.logprobs.begin(), delta.logprobs.end());
    ++pending_count_;
    WriteNext();
    const int64_t undelivered = pending_count_ + writing_count_;
    parked_ = undelivered >= limits::kUndeliveredDeltas;
    return undelivered;
  }

  void OnFinish(Finish finish) override {
    handle().Clear();
    std::lock_guard lock(mutex_);
    if (closed_ || ended_) return;
    ended_ = true;
    status_ = StatusOf(finish);
    if (status_.ok()) *finish_.mutable_finish() = ToProto(finish);
    // What a reader did not take in time is dropped: its error must not wait behind it.
    if (broken_ || ReasonOf(status_) == reason::kSlowReader) return Close();
    WriteNext();
  }

  void Refused(absl::Status status) {
    std::lock_guard lock(mutex_);
    if (closed_ || ended_) return;
    ended_ = true;
    status_ = std::move(status);
    has_prompt_ = false;
    Close();
  }

  void OnWritten(bool ok) {
    bool resume = false;
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      writing_count_ = 0;
      if (closed_) return;
      broken_ |= !ok;
      if (broken_ && ended_) return Close();
      if (!broken_) WriteNext();
      resume = parked_;
    }
    if (!ok) return handle().Cancel();
    if (resume) handle().Resume();
  }

  // The call is over; its reactor is about to go.
  absl::Status Detach() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    reactor_ = nullptr;
    return ended_ ? status_ : absl::CancelledError("the caller went away");
  }

 private:
  void WriteNext() {
    if (writing_ || broken_) return;
    if (has_prompt_) {
      has_prompt_ = false;
      return Write(std::move(prompt_), 0);
    }
    if (pending_count_ > 0) {
      Write(std::move(pending_), std::exchange(pending_count_, 0));
      pending_.Clear();
      return;
    }
    if (!ended_) return;
    if (!status_.ok()) return Close();
    current_ = std::move(finish_);
    writing_ = closed_ = true;
    reactor_->StartWriteAndFinish(&current_, grpc::WriteOptions(), grpc::Status::OK);
  }

  void Write(v1::GenerateResponse message, int64_t deltas) {
    current_ = std::move(message);
    writing_ = true;
    writing_count_ = deltas;
    reactor_->StartWrite(&current_);
  }

  void Close() {
    closed_ = true;
    reactor_->Finish(ToGrpcStatus(status_));
  }

  std::mutex mutex_;
  Reactor* reactor_;
  v1::GenerateResponse prompt_, pending_, finish_, current_;
  bool has_prompt_ = false;
  bool writing_ = false;  // a message is with gRPC
  bool broken_ = false;   // a write failed: nobody reads any more
  bool parked_ = false;   // the engine was told to wait
  bool ended_ = false;    // the engine said its last word
  bool closed_ = false;   // the call was finished
  int64_t pending_count_ = 0, writing_count_ = 0;
  absl::Status status_;
};

class GenerateReactor final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  GenerateReactor(Engine& engine, CallCenter& center, grpc::CallbackServerContext* context,
                  const v1::GenerateRequest& request)
      : center_(center),
        peer_(context->peer()),
        request_id_(request.request_id()),
        sink_(std::make_shared<StreamSink>(this)) {
    SubmitGeneration(engine, center, request, DeadlineOf(*context), sink_,
                     [sink = sink_](absl::Status s) { sink->Refused(std::move(s)); });
  }

  void OnWriteDone(bool ok) override { sink_->OnWritten(ok); }
  void OnCancel() override { sink_->handle().Cancel(); }
  void OnDone() override {
    absl::Status status = sink_->Detach();
    sink_->handle().Cancel();
    center_.Record({"GenerationService/Generate", std::move(status), absl::Now() - start_, peer_,
                    request_id_});
    delete this;
  }

 private:
  CallCenter& center_;
  const absl::Time start_ = absl::Now();
  const std::string peer_, request_id_;
  const std::shared_ptr<StreamSink> sink_;
};

// Collects the whole answer.
class OnceSink final : public GenerationSink {
 public:
  OnceSink(grpc::ServerUnaryReactor* reactor, v1::GenerateResult* result)
      : reactor_(reactor), result_(result) {}

  void OnPrompt(v1::PromptInfo info) override { *result_->mutable_prompt_info() = std::move(info); }

  int64_t OnDelta(Delta delta) override {
    result_->mutable_text()->append(delta.text);
    result_->mutable_token_ids()->Add(delta.token_ids.begin(), delta.token_ids.end());
    result_->mutable_logprobs()->Add(delta.logprobs.begin(), delta.logprobs.end());
    return 0;
  }

  void OnFinish(Finish finish) override {
    handle().Clear();
    *result_->mutable_finish() = ToProto(finish);
    End(StatusOf(finish));
  }

  void End(absl::Status status) {
    const grpc::Status wire = ToGrpcStatus(status);
    {
      std::lock_guard lock(mutex_);
      status_ = std::move(status);
    }
    reactor_->Finish(wire);
  }

  absl::Status status() {
    std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  // The reactor and the result live until Finish(), which comes exactly once, from OnFinish() or a
  // refusal; a caller that went away does not change that.
  grpc::ServerUnaryReactor* reactor_;
  v1::GenerateResult* result_;
  std::mutex mutex_;
  absl::Status status_;
};

class OnceReactor final : public grpc::ServerUnaryReactor {
 public:
  OnceReactor(Engine& engine, CallCenter& center, grpc::CallbackServerContext* context,
              const v1::GenerateRequest& request, v1::GenerateResult* result)
      : center_(center),
        peer_(context->peer()),
        request_id_(request.request_id()),
        sink_(std::make_shared<OnceSink>(this, result)) {
    SubmitGeneration(engine, center, request, DeadlineOf(*context), sink_,
                     [sink = sink_](absl::Status s) { sink->End(std::move(s)); });
  }

  void OnCancel() override { sink_->handle().Cancel(); }
  void OnDone() override {
    center_.Record({"GenerationService/GenerateOnce", sink_->status(), absl::Now() - start_, peer_,
                    request_id_});
    delete this;
  }

 private:
  CallCenter& center_;
  const absl::Time start_ = absl::Now();
  const std::string peer_, request_id_;
  const std::shared_ptr<OnceSink> sink_;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return new GenerateReactor(*engine_, *center_, context, *request);
}

grpc::ServerUnaryReactor* GenerationService::GenerateOnce(grpc::CallbackServerContext* context,
                                                          const v1::GenerateRequest* request,
                                                          v1::GenerateResult* response) {
  return new OnceReactor(*engine_, *center_, context, *request, response);
}

}  // namespace babai
