#include "server/rpc/rpc_server.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/reason/reason.h"
#include "server/rpc/change_hub.h"
#include "server/rpc/evaluation_service.h"
#include "server/rpc/evaluations.h"
#include "server/rpc/generation_service.h"
#include "server/rpc/limits.h"
#include "server/rpc/operations_service.h"
#include "server/rpc/quantization_service.h"
#include "server/rpc/quantize_operations.h"
#include "server/rpc/tokenizer_service.h"

namespace babai {
namespace {

constexpr auto kHealthInterval = std::chrono::seconds(1);

// One health name a model: SERVING while it is loaded.
class ModelHealth {
 public:
  ModelHealth(const Engine& engine, grpc::HealthCheckServiceInterface& health)
      : engine_(engine), health_(health), thread_([this] { Run(); }) {}

  ~ModelHealth() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  void Refresh() {
    {
      std::lock_guard lock(mutex_);
      stale_ = true;
    }
    wake_.notify_all();
  }

  // Everything NOT_SERVING for good.
  void Drain() { health_.Shutdown(); }

 private:
  // Models come and go without a call (first use, eviction): hence the look every second.
  void Run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      Publish();
      stale_ = false;
      wake_.wait_for(lock, kHealthInterval, [this] { return stopping_ || stale_; });
    }
  }

  void Publish() {
    std::set<std::string> loaded;
    for (const ModelStatus& model : engine_.Loaded()) {
      if (model.state == LoadState::kLoaded) loaded.insert(model.name);
    }
    for (const std::string& name : loaded) {
      if (!serving_.contains(name)) health_.SetServingStatus(name, true);
    }
    for (const std::string& name : serving_) {
      if (!loaded.contains(name)) health_.SetServingStatus(name, false);
    }
    serving_ = std::move(loaded);
  }

  const Engine& engine_;
  grpc::HealthCheckServiceInterface& health_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false, stale_ = false;
  std::set<std::string> serving_;
  std::thread thread_;
};

// Built before the builder and once a process: both are switches of the gRPC library.
void EnablePlugins() {
  static const bool enabled = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    // Links the health protocol's descriptor, so that reflection can describe it.
    return grpc::health::v1::HealthCheckRequest::descriptor() != nullptr;
  }();
  (void)enabled;
}

class RpcServerImpl final : public RpcServer {
 public:
  RpcServerImpl(RpcOptions options, RpcBackends backends)
      : options_(std::move(options)),
        center_(options_.on_call),
        hub_(absl::ToChronoNanoseconds(options_.heartbeat)),
        jobs_as_operations_(backends.jobs, backends.catalog, backends.engine),
        evaluations_(backends.engine, [this](std::string_view id) { hub_.Notify(id); }),
        generation_(backends.engine, &center_),
        quantization_(backends.jobs, &jobs_as_operations_, &hub_, &center_,
                      std::move(backends.check_quantize)),
        operations_({&evaluations_, &jobs_as_operations_}, &hub_, &center_),
        models_(backends.engine, backends.catalog, &center_, options_.facts,
                [this] { RefreshHealth(); }),
        tokenizer_(backends.engine, &center_),
        evaluation_(backends.engine, backends.catalog, &evaluations_, &center_),
        engine_(backends.engine) {}

  ~RpcServerImpl() override { Stop(absl::Now()); }

  absl::Status Listen() {
    EnablePlugins();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
    SetLimits(builder);
    for (grpc::Service* service : std::initializer_list<grpc::Service*>{
             &generation_, &quantization_, &operations_, &models_, &tokenizer_, &evaluation_}) {
      builder.RegisterService(service);
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, "listen",
                    absl::StrCat("cannot listen on '", options_.listen,
                                 "': not an address of this host, or the port is taken"));
    }
    address_ = options_.listen;
    if (!absl::StartsWith(address_, "unix:")) {
      address_ = absl::StrCat(address_.substr(0, address_.rfind(':')), ":", port);
    }
    health_ = std::make_unique<ModelHealth>(*engine_, *server_->GetHealthCheckService());
    health_started_ = true;
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }
  void OnJobChange(std::string_view id) override { hub_.Notify(id); }

  void BeginDrain() override {
    center_.set_draining();
    if (health_started_) health_->Drain();
  }

  void Stop(absl::Time deadline) override {
    std::lock_guard lock(stop_mutex_);
    if (server_ == nullptr || stopped_) return;
    stopped_ = true;
    BeginDrain();
    server_->Shutdown(absl::ToChronoTime(deadline));
    health_started_ = false;
    health_.reset();
  }

 private:
  static void SetLimits(grpc::ServerBuilder& builder) {
    builder.SetMaxReceiveMessageSize(static_cast<int>(limits::kReceiveBytes));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a taken port is an error
  }

  void RefreshHealth() {
    if (health_started_) health_->Refresh();
  }

  const RpcOptions options_;
  CallCenter center_;
  ChangeHub hub_;
  QuantizeOperations jobs_as_operations_;
  Evaluations evaluations_;
  GenerationService generation_;
  QuantizationService quantization_;
  OperationsService operations_;
  ModelService models_;
  TokenizerService tokenizer_;
  EvaluationService evaluation_;
  Engine* engine_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ModelHealth> health_;
  std::atomic<bool> health_started_ = false;
  std::mutex stop_mutex_;
  bool stopped_ = false;
  std::string address_;
};

}  // namespace

bool IsLoopback(std::string_view address) {
  if (address.starts_with("unix:")) return true;
  const std::string_view host = address.substr(0, address.rfind(':'));
  if (host == "localhost" || host == "[::1]") return true;
  // 127.0.0.0/8 in dotted form; anything else spelled with digits is not taken for loopback.
  if (!host.starts_with("127.")) return false;
  return host.find_first_not_of("0123456789.") == std::string_view::npos;
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(RpcOptions options,
                                                            RpcBackends backends) {
  if (!absl::StartsWith(options.listen, "unix:") &&
      options.listen.rfind(':') == std::string::npos) {
    return InvalidField("listen", "must be host:port or unix:/path");
  }
  if (!options.insecure_listen_anywhere && !IsLoopback(options.listen)) {
    return Refuse(
        absl::StatusCode::kFailedPrecondition, reason::kInvalidField, "listen",
        absl::StrCat("'", options.listen,
                     "' can be reached from other machines and this release has no "
                     "authentication; listen on 127.0.0.1 behind a proxy that has, or pass "
                     "--insecure_listen_anywhere"));
  }
  auto server = std::make_unique<RpcServerImpl>(std::move(options), std::move(backends));
  if (absl::Status s = server->Listen(); !s.ok()) return s;
  return server;
}

}  // namespace babai
