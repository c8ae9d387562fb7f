#include "server/rpc/generation_call.h"

#include <chrono>
#include <utility>

#include "server/reason/reason.h"
#include "server/rpc/requests.h"

namespace babai {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

void HandleSlot::Set(std::shared_ptr<GenerateHandle> handle) {
  bool cancel = false, resume = false;
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    handle_ = handle;
    cancel = cancelled_;
    resume = std::exchange(resume_, false);
  }
  if (cancel) handle->Cancel();
  if (resume) handle->Resume();
}

void HandleSlot::Cancel() {
  std::shared_ptr<GenerateHandle> handle;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    handle = handle_;
  }
  if (handle) handle->Cancel();
}

void HandleSlot::Resume() {
  std::shared_ptr<GenerateHandle> handle;
  {
    std::lock_guard lock(mutex_);
    resume_ = handle_ == nullptr;
    handle = handle_;
  }
  if (handle) handle->Resume();
}

bool HandleSlot::cancelled() {
  std::lock_guard lock(mutex_);
  return cancelled_;
}

void HandleSlot::Clear() {
  std::shared_ptr<GenerateHandle> handle;  // dies outside the lock
  std::lock_guard lock(mutex_);
  ended_ = true;
  handle.swap(handle_);
}

absl::Status StartGeneration(Engine& engine, const v1::GenerateRequest& request,
                             absl::Time deadline, const std::shared_ptr<GenerationSink>& sink) {
  auto tokenizer = engine.TokenizerOf(request.model());
  if (!tokenizer.ok()) return tokenizer.status();
  auto accepted = ToGenerateRequest(request, **tokenizer, deadline);
  if (!accepted.ok()) return accepted.status();

  v1::PromptInfo info;
  info.set_model(request.model());
  info.set_prompt_tokens(static_cast<int64_t>(accepted->prompt.size()));
  info.set_seed(accepted->sampling.seed);
  sink->OnPrompt(std::move(info));

  auto handle = engine.Generate(*std::move(accepted), sink);
  if (!handle.ok()) return handle.status();
  sink->handle().Set(*std::move(handle));
  return absl::OkStatus();
}

void SubmitGeneration(Engine& engine, CallCenter& center, const v1::GenerateRequest& request,
                      absl::Time deadline, std::shared_ptr<GenerationSink> sink,
                      std::function<void(absl::Status)> refused) {
  if (center.draining()) return refused(RefuseDraining());
  if (absl::Status s = CheckGenerate(request); !s.ok()) return refused(std::move(s));
  const bool loaded = engine.Status(request.model()).state == LoadState::kLoaded;
  WorkQueue& queue = loaded ? center.quick() : center.slow();
  const bool taken = queue.Submit([&engine, &request, deadline, sink, refused] {
    if (sink->handle().cancelled()) return refused(absl::CancelledError("the caller went away"));
    absl::Status s = Guarded([&] { return StartGeneration(engine, request, deadline, sink); });
    if (!s.ok()) refused(std::move(s));
  });
  if (!taken) refused(RefuseQueueFull("too many requests are waiting"));
}

absl::Status StatusOf(const Finish& finish) {
  if (!finish.status.ok()) return finish.status;
  if (finish.reason == FinishReason::kCancelled) {
    return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "",
                  "the request was cancelled");
  }
  if (finish.reason == FinishReason::kError) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "", "generation failed");
  }
  return absl::OkStatus();
}

}  // namespace babai
