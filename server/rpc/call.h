// What every call has in common: a record for metrics and logs, the drain switch, exceptions
// stopped at the door, and unary work moved off gRPC's threads.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "server/reason/reason.h"
#include "server/rpc/status.h"
#include "server/rpc/work_queue.h"

namespace babai {

struct CallRecord {
  std::string_view method;  // "GenerationService/Generate"; a literal
  absl::Status status;
  absl::Duration took;
  std::string peer;
  std::string request_id;  // as the client gave it
};

// Shared by all services; outlives the gRPC server.
class CallCenter {
 public:
  using Log = std::function<void(const CallRecord&)>;  // thread-safe, may be null
  explicit CallCenter(Log log) : log_(std::move(log)) {}

  void set_draining() { draining_ = true; }
  bool draining() const { return draining_; }

  void Record(const CallRecord& record) const {
    if (log_) log_(record);
  }

  // Short work (a lookup, tokenizing) and long work (loading a model) do not wait for each other.
  WorkQueue& quick() { return quick_; }
  WorkQueue& slow() { return slow_; }

 private:
  Log log_;
  std::atomic<bool> draining_ = false;
  WorkQueue quick_{2, 1024};
  WorkQueue slow_{4, 256};
};

inline absl::Status RefuseDraining() {
  return Refuse(absl::StatusCode::kUnavailable, reason::kDraining, "",
                "the server is about to stop; retry at another one or later");
}

inline absl::Status RefuseQueueFull(std::string_view what) {
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kQueueFull, "", what);
}

// Runs `work` (returning absl::Status); an exception becomes a status.
template <class Work>
absl::Status Guarded(Work&& work) noexcept {
  try {
    return std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "the server has no memory for this request");
  } catch (const std::exception&) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "",
                  "an unexpected error; the server's log may say more");
  }
}

// Starts `work` on `queue` and finishes the call with its status. `work` may use the call's request
// and response: they live until the call is finished.
template <class Work>
grpc::ServerUnaryReactor* RunUnary(CallCenter& center, WorkQueue& queue, std::string_view method,
                                   grpc::CallbackServerContext* context, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Time start = absl::Now();
  const auto finish = [&center, method, context, reactor, start](const absl::Status& status) {
    center.Record({method, status, absl::Now() - start, context->peer(), ""});
    reactor->Finish(ToGrpcStatus(status));
  };
  const bool taken = queue.Submit([context, finish, work = std::move(work)]() mutable {
    finish(context->IsCancelled() ? absl::CancelledError("the caller went away") : Guarded(work));
  });
  if (!taken) finish(RefuseQueueFull("too many calls are waiting"));
  return reactor;
}

}  // namespace babai
