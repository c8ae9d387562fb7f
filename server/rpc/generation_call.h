// The part of a generate call that streams and single answers share: getting the request accepted
// by the engine while the caller may already be gone.
#pragma once

#include <functional>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "babai/v1/generation.pb.h"
#include "grpcpp/server_context.h"
#include "server/engine/engine.h"
#include "server/rpc/call.h"

namespace babai {

// The deadline of a call on the engine's clock.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context);

// A running request's handle, which arrives after its first output may have. Thread-safe.
class HandleSlot {
 public:
  void Set(std::shared_ptr<GenerateHandle> handle);
  void Cancel();
  void Resume();
  bool cancelled();
  void Clear();  // the request ended; breaks the cycle handle -> sink -> slot

 private:
  std::mutex mutex_;
  std::shared_ptr<GenerateHandle> handle_;
  bool cancelled_ = false, ended_ = false, resume_ = false;
};

// What a sink of this service must know besides the engine's output.
class GenerationSink : public GenerateSink {
 public:
  // The checked request, before the engine sees it.
  virtual void OnPrompt(v1::PromptInfo info) = 0;
  HandleSlot& handle() { return handle_; }

 private:
  HandleSlot handle_;
};

// Checks, tokenizes and queues. The status of a refusal; otherwise the sink's OnFinish() follows.
absl::Status StartGeneration(Engine& engine, const v1::GenerateRequest& request,
                             absl::Time deadline, const std::shared_ptr<GenerationSink>& sink);

// Does StartGeneration() away from gRPC's threads: on the quick queue if the model is loaded, on
// the slow one if not. `refused` is called instead of the sink's OnFinish() when nothing was
// started. Request and engine must live until one of the two was called.
void SubmitGeneration(Engine& engine, CallCenter& center, const v1::GenerateRequest& request,
                      absl::Time deadline, std::shared_ptr<GenerationSink> sink,
                      std::function<void(absl::Status)> refused);

// How a finished sequence ends its call.
absl::Status StatusOf(const Finish& finish);

}  // namespace babai
