#include "server/rpc/quantization_service.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/limits.h"
#include "server/rpc/messages.h"
#include "server/rpc/requests.h"

namespace babai {
namespace {

// Streams a job's revisions. The hub calls; one message is in flight at a time, and a change that
// comes meanwhile is looked at when it is written, so a slow reader sees the newest state and no
// backlog.
class WatchSink final : public ChangeListener {
 public:
  using Reactor = grpc::ServerWriteReactor<v1::WatchQuantizationResponse>;

  WatchSink(Reactor* reactor, const JobManager* jobs, int64_t after_revision)
      : reactor_(reactor), jobs_(jobs), sent_revision_(after_revision) {}

  void Begin(std::string id) { id_ = std::move(id); }

  bool OnChange() override {
    std::lock_guard lock(mutex_);
    if (writing_ && !closed_) {
      stale_ = true;
      return true;
    }
    if (!closed_) Look(/*heartbeat=*/false);
    return !closed_;
  }

  bool OnQuiet() override {
    std::lock_guard lock(mutex_);
    if (!closed_ && !writing_) Look(/*heartbeat=*/true);
    return !closed_;
  }

  void OnWritten(bool ok) {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (closed_) return;
    if (!ok || cancelled_) return Close(absl::CancelledError("the caller went away"));
    if (std::exchange(stale_, false)) Look(/*heartbeat=*/false);
  }

  void Close(absl::Status status) {
    if (closed_) return;
    closed_ = true;
    status_ = std::move(status);
    reactor_->Finish(ToGrpcStatus(status_));
  }

  void OnCancel() {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (!writing_) Close(absl::CancelledError("the caller went away"));
  }

  absl::Status Detach() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    return status_;
  }

 private:
  void Look(bool heartbeat) {
    const auto job = jobs_->Get(id_);
    if (!job.ok()) return Close(job.status());
    const bool done = IsTerminal(job->progress.state);
    const bool news = job->revision > sent_revision_ || done;
    if (!news && !heartbeat) return;
    Write(*job, done, !news);
  }

  void Write(const Job& job, bool done, bool heartbeat) {
    message_.Clear();
    message_.set_name(absl::StrCat("operations/", job.id));
    message_.set_heartbeat(heartbeat);
    message_.set_done(done);
    *message_.mutable_metadata() = ToProto(job);
    AddLinears(job, std::min(sent_linears_, job.linears.size()), *message_.mutable_metadata());
    sent_linears_ = job.linears.size();
    sent_revision_ = job.revision;
    writing_ = true;
    if (!done) return reactor_->StartWrite(&message_);
    if (job.progress.state != JobState::kReady)
      *message_.mutable_error() = ToProtoStatus(ErrorOf(job));
    closed_ = true;
    reactor_->StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  std::mutex mutex_;
  Reactor* reactor_;
  const JobManager* jobs_;
  std::string id_;
  int64_t sent_revision_;
  size_t sent_linears_ = 0;  // a restarted job begins again with none
  bool writing_ = false, stale_ = false, cancelled_ = false, closed_ = false;
  v1::WatchQuantizationResponse message_;
  absl::Status status_;
};

class WatchReactor final : public grpc::ServerWriteReactor<v1::WatchQuantizationResponse> {
 public:
  WatchReactor(const JobManager& jobs, ChangeHub& hub, CallCenter& center,
               grpc::CallbackServerContext* context, const v1::WatchQuantizationRequest& request)
      : center_(center),
        peer_(context->peer()),
        sink_(std::make_shared<WatchSink>(this, &jobs, request.after_revision())) {
    const absl::Status subscribed = Subscribe(hub, request);
    if (!subscribed.ok()) sink_->Close(subscribed);
  }

  void OnWriteDone(bool ok) override { sink_->OnWritten(ok); }
  void OnCancel() override { sink_->OnCancel(); }
  void OnDone() override {
    center_.Record({"QuantizationService/WatchQuantization", sink_->Detach(), absl::Now() - start_,
                    peer_, ""});
    delete this;
  }

 private:
  absl::Status Subscribe(ChangeHub& hub, const v1::WatchQuantizationRequest& request) {
    const auto id = ToOperationId(request.name());
    if (!id.ok()) return id.status();
    if (request.after_revision() < 0) {
      return InvalidField("after_revision", "must be at least 0");
    }
    sink_->Begin(*id);
    hub.Subscribe(*id, sink_);
    return absl::OkStatus();
  }

  CallCenter& center_;
  const absl::Time start_ = absl::Now();
  const std::string peer_;
  const std::shared_ptr<WatchSink> sink_;
};

}  // namespace

// A retry must find its job even if the request would be refused by now (the name is taken: by the
// job itself), so it is looked up before the checks.
bool QuantizationService::IsRetry(const std::string& request_id) const {
  if (request_id.empty()) return false;
  std::string token;
  do {
    std::string next;
    const auto jobs = jobs_->List(limits::kPageSize, token, &next);
    if (!jobs.ok()) return false;
    if (std::any_of(jobs->begin(), jobs->end(),
                    [&](const Job& job) { return job.spec.request_id == request_id; })) {
      return true;
    }
    token = std::move(next);
  } while (!token.empty());
  return false;
}

absl::StatusOr<Job> QuantizationService::Submit(const v1::QuantizeRequest& request) {
  auto spec = ToQuantizeSpec(request);
  if (!spec.ok()) return spec.status();
  if (!IsRetry(spec->request_id)) {
    if (absl::Status s = check_(*spec); !s.ok()) return s;
  }
  auto job = jobs_->Submit(*spec);
  if (job.ok()) hub_->Notify(job->id);
  return job;
}

grpc::ServerUnaryReactor* QuantizationService::Quantize(grpc::CallbackServerContext* context,
                                                        const v1::QuantizeRequest* request,
                                                        google::longrunning::Operation* response) {
  return RunUnary(*center_, center_->slow(), "QuantizationService/Quantize", context,
                  [this, request, response] {
                    if (center_->draining()) return RefuseDraining();
                    const auto job = Submit(*request);
                    if (!job.ok()) return job.status();
                    *response = operations_->ToOperation(*job, /*with_linears=*/false);
                    return absl::OkStatus();
                  });
}

grpc::ServerWriteReactor<v1::WatchQuantizationResponse>* QuantizationService::WatchQuantization(
    grpc::CallbackServerContext* context, const v1::WatchQuantizationRequest* request) {
  return new WatchReactor(*jobs_, *hub_, *center_, context, *request);
}

grpc::ServerUnaryReactor* QuantizationService::EstimateQuantization(
    grpc::CallbackServerContext* context, const v1::EstimateQuantizationRequest* request,
    v1::EstimateQuantizationResponse* response) {
  return RunUnary(*center_, center_->quick(), "QuantizationService/EstimateQuantization", context,
                  [] { return NotInThisRelease("", "estimating a quantization"); });
}

}  // namespace babai
