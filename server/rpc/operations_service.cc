#include "server/rpc/operations_service.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/reason/reason.h"
#include "server/rpc/requests.h"

namespace babai {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

// Finishes a WaitOperation when its operation is done or its time is over.
class WaitReactor final : public grpc::ServerUnaryReactor {
 public:
  WaitReactor(CallCenter& center, grpc::CallbackServerContext& context, Operation* response)
      : center_(center), peer_(context.peer()), response_(response) {}

  void Begin(ChangeHub& hub, OperationSource* source, std::string id, SteadyTime give_up) {
    listener_ = std::make_shared<Listener>(this, source, id, give_up);
    hub.Subscribe(id, listener_);
  }

  void End(const absl::Status& status) {
    if (std::exchange(ended_, true)) return;
    status_ = status;
    Finish(ToGrpcStatus(status));
  }

  void OnCancel() override {
    if (listener_) listener_->Stop(absl::CancelledError("the caller went away"));
  }

  void OnDone() override {
    center_.Record({"Operations/WaitOperation", status_, absl::Now() - start_, peer_, ""});
    if (listener_) listener_->Stop(status_);
    delete this;
  }

 private:
  class Listener final : public ChangeListener {
   public:
    Listener(WaitReactor* reactor, OperationSource* source, std::string id, SteadyTime give_up)
        : reactor_(reactor), source_(source), id_(std::move(id)), give_up_(give_up) {}

    bool OnChange() override {
      std::lock_guard lock(mutex_);
      if (stopped_) return false;
      auto operation = source_->Get(id_);
      const bool over = std::chrono::steady_clock::now() >= give_up_;
      if (operation.ok() && !operation->done() && !over) return true;
      stopped_ = true;
      if (operation.ok()) *reactor_->response_ = *std::move(operation);
      reactor_->End(operation.status());
      return false;
    }

    bool OnQuiet() override { return OnChange(); }
    SteadyTime wake_at() const override { return give_up_; }

    void Stop(const absl::Status& status) {
      std::lock_guard lock(mutex_);
      if (std::exchange(stopped_, true)) return;
      reactor_->End(status);
    }

   private:
    std::mutex mutex_;
    WaitReactor* reactor_;
    OperationSource* source_;
    const std::string id_;
    const SteadyTime give_up_;
    bool stopped_ = false;
  };

  CallCenter& center_;
  const absl::Time start_ = absl::Now();
  const std::string peer_;
  Operation* response_;
  std::shared_ptr<Listener> listener_;
  bool ended_ = false;
  absl::Status status_;
};

absl::StatusOr<SteadyTime> GiveUpAt(const google::longrunning::WaitOperationRequest& request) {
  if (!request.has_timeout()) return SteadyTime::max();
  const auto& timeout = request.timeout();
  constexpr int64_t kMost = 7 * 24 * 3600;
  if (timeout.seconds() < 0 || timeout.seconds() > kMost || timeout.nanos() < 0 ||
      timeout.nanos() > 999'999'999) {
    return InvalidField("timeout", absl::StrCat("must be in [0, ", kMost, "] seconds"));
  }
  return std::chrono::steady_clock::now() + std::chrono::seconds(timeout.seconds()) +
         std::chrono::nanoseconds(timeout.nanos());
}

// A page token is "<source index>:<the source's own token>".
absl::StatusOr<std::pair<size_t, std::string>> ParseToken(const std::string& token,
                                                          size_t sources) {
  if (token.empty()) return std::pair<size_t, std::string>{0, ""};
  const size_t colon = token.find(':');
  uint32_t index = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(token.substr(0, colon), &index) ||
      index >= sources) {
    return InvalidField("page_token", "is not one that this server gave");
  }
  return std::pair<size_t, std::string>{index, token.substr(colon + 1)};
}

}  // namespace

absl::StatusOr<OperationSource*> OperationsService::SourceOf(std::string_view id) const {
  for (OperationSource* source : sources_) {
    if (source->Owns(id)) return source;
  }
  return Refuse(absl::StatusCode::kNotFound, reason::kJobNotFound, "name",
                absl::StrCat("no operation '", std::string(id), "'"));
}

absl::Status OperationsService::List(const google::longrunning::ListOperationsRequest& request,
                                     google::longrunning::ListOperationsResponse& response) const {
  if (!request.name().empty() && request.name() != "operations") {
    return InvalidField("name", "must be empty or \"operations\"");
  }
  if (!request.filter().empty()) return NotInThisRelease("filter", "filtering operations");
  const auto page_size = ToPageSize(request.page_size());
  if (!page_size.ok()) return page_size.status();
  const auto token = ParseToken(request.page_token(), sources_.size());
  if (!token.ok()) return token.status();
  auto [index, source_token] = *token;
  while (index < sources_.size()) {
    const int64_t room = *page_size - response.operations_size();
    if (room == 0) break;
    std::string next;
    auto page = sources_[index]->List(room, source_token, &next);
    if (!page.ok()) return page.status();
    for (Operation& operation : *page) *response.add_operations() = std::move(operation);
    source_token = std::move(next);
    if (source_token.empty()) ++index;
  }
  if (index < sources_.size()) {
    response.set_next_page_token(absl::StrCat(index, ":", source_token));
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* OperationsService::ListOperations(
    grpc::CallbackServerContext* context, const google::longrunning::ListOperationsRequest* request,
    google::longrunning::ListOperationsResponse* response) {
  return RunUnary(*center_, center_->quick(), "Operations/ListOperations", context,
                  [this, request, response] { return List(*request, *response); });
}

grpc::ServerUnaryReactor* OperationsService::GetOperation(
    grpc::CallbackServerContext* context, const google::longrunning::GetOperationRequest* request,
    Operation* response) {
  return RunUnary(*center_, center_->quick(), "Operations/GetOperation", context,
                  [this, request, response]() -> absl::Status {
                    const auto id = ToOperationId(request->name());
                    if (!id.ok()) return id.status();
                    const auto source = SourceOf(*id);
                    if (!source.ok()) return source.status();
                    auto operation = (*source)->Get(*id);
                    if (operation.ok()) *response = *std::move(operation);
                    return operation.status();
                  });
}

grpc::ServerUnaryReactor* OperationsService::DeleteOperation(
    grpc::CallbackServerContext* context,
    const google::longrunning::DeleteOperationRequest* request, google::protobuf::Empty*) {
  return RunUnary(*center_, center_->quick(), "Operations/DeleteOperation", context,
                  [this, request]() -> absl::Status {
                    const auto id = ToOperationId(request->name());
                    if (!id.ok()) return id.status();
                    const auto source = SourceOf(*id);
                    if (!source.ok()) return source.status();
                    return (*source)->Delete(*id);
                  });
}

grpc::ServerUnaryReactor* OperationsService::CancelOperation(
    grpc::CallbackServerContext* context,
    const google::longrunning::CancelOperationRequest* request, google::protobuf::Empty*) {
  return RunUnary(*center_, center_->quick(), "Operations/CancelOperation", context,
                  [this, request]() -> absl::Status {
                    const auto id = ToOperationId(request->name());
                    if (!id.ok()) return id.status();
                    const auto source = SourceOf(*id);
                    if (!source.ok()) return source.status();
                    absl::Status status = (*source)->Cancel(*id);
                    if (status.ok()) hub_->Notify(*id);
                    return status;
                  });
}

grpc::ServerUnaryReactor* OperationsService::WaitOperation(
    grpc::CallbackServerContext* context, const google::longrunning::WaitOperationRequest* request,
    Operation* response) {
  auto* reactor = new WaitReactor(*center_, *context, response);
  const auto id = ToOperationId(request->name());
  const auto give_up = GiveUpAt(*request);
  const auto source = id.ok() ? SourceOf(*id) : absl::StatusOr<OperationSource*>(id.status());
  if (!source.ok()) {
    reactor->End(source.status());
  } else if (!give_up.ok()) {
    reactor->End(give_up.status());
  } else {
    reactor->Begin(*hub_, *source, *id, *give_up);
  }
  return reactor;
}

}  // namespace babai
