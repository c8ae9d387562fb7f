#include "server/server.h"

#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/engine/cuda_runner.h"
#include "server/engine/engine.h"
#include "server/flags.h"
#include "server/http/metrics.h"
#include "server/jobs/job.h"
#include "server/jobs/quantize_job.h"
#include "server/log.h"
#include "server/reason/reason.h"
#include "server/rpc/rpc_server.h"
#include "server/store/catalog.h"

namespace babai {
namespace {

// SIGTERM and SIGINT wait for sigwait() in every thread started from now on.
sigset_t BlockStopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return set;
}

// What --device asks for; auto is the GPU where there is one.
absl::StatusOr<Device> ChooseDevice(const std::string& device) {
  if (device == "cpu") return Device::kCpu;
  const absl::Status available = CudaAvailable();
  if (available.ok()) return Device::kCuda;
  if (device == "cuda") return available;
  return Device::kCpu;
}

std::string NameOf(Device device) { return device == Device::kCuda ? "cuda" : "cpu"; }

absl::StatusOr<std::vector<std::filesystem::path>> RootsOf(const ServerFlags& flags) {
  std::vector<std::filesystem::path> roots;
  for (const std::string& root : flags.model_roots) {
    if (root.empty()) continue;
    std::error_code error;
    const auto real = std::filesystem::canonical(root, error);
    if (error || !std::filesystem::is_directory(real, error)) {
      return InvalidField("model_roots", absl::StrCat("'", root, "' is not a folder"));
    }
    roots.push_back(real);
  }
  return roots;
}

EngineOptions EngineOptionsOf(const ServerFlags& flags, Device device, const ServerParts& parts) {
  EngineOptions options;
  options.device = device;
  options.make_runner = parts.make_runner;
  options.threads = flags.threads;
  options.max_queue = flags.max_queue;
  options.max_sequences = flags.max_sequences;
  options.memory_limit_bytes = static_cast<int64_t>(flags.memory_limit);
  options.kv_bytes_per_model = static_cast<int64_t>(flags.kv_bytes_per_model);
  options.max_context = flags.max_context;
  return options;
}

// For the thread that jobs run on: it and the threads it will start, which inherit this, get what
// answers leave of the processors. (On Linux a thread has a priority of its own.) The least
// priority is not enough: a thread that wakes up may have to wait for the end of another's slice,
// some 3 ms, unless that one is idle work.
void GiveWayToAnswers() {
  constexpr int kLeast = 19;
  const sched_param none{};
  if (sched_setscheduler(0, SCHED_IDLE, &none) == 0) return;
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kLeast);  // the policy is forbidden here
}

// Everything a running server is made of, taken apart in the opposite order.
class Server {
 public:
  Server(const ServerFlags& flags, const ServerParts& parts, const Log& log)
      : flags_(flags), parts_(parts), log_(log), metrics_(BABAI_VERSION) {}

  ~Server() {
    rpc_for_jobs_ = nullptr;
    if (rpc_) rpc_->Stop(absl::Now());
    if (jobs_) jobs_->Shutdown();
    metrics_.Detach();
  }

  absl::Status Start() {
    const absl::StatusOr<Device> device = ChooseDevice(flags_.device);
    if (!device.ok()) return device.status();
    device_ = *device;
    auto roots = RootsOf(flags_);
    if (!roots.ok()) return roots.status();
    if (roots->empty()) {
      log_.Write(LogLevel::kWarning, "no --model_roots: file:// URIs will be refused");
    }
    auto catalog = Catalog::Open(flags_.data_dir);
    if (!catalog.ok()) return catalog.status();
    catalog_ = *std::move(catalog);
    EngineOptions options = EngineOptionsOf(flags_, device_, parts_);
    options.on_device_lost = [this] { OnDeviceLost(); };
    auto engine = Engine::Create(std::move(options), catalog_.get(), &metrics_);
    if (!engine.ok()) return engine.status();
    engine_ = *std::move(engine);
    metrics_.Attach(engine_.get(), catalog_.get());
    work_ = {catalog_.get(), *std::move(roots), flags_.threads, device_ == Device::kCuda,
             /*beside_answers=*/true};
    if (absl::Status s = OpenJobs(); !s.ok()) return s;
    return Listen();
  }

  // The contract of scripts: this line, on stdout, once the server serves.
  void SayReady() const {
    std::printf("ready listen=%s metrics=%s\n", rpc_->address().c_str(), metrics_address_.c_str());
    std::fflush(stdout);
    log_.Write(LogLevel::kInfo, "ready",
               {{"version", BABAI_VERSION},
                {"device", NameOf(device_)},
                {"listen", rpc_->address()},
                {"metrics", metrics_address_},
                {"data_dir", flags_.data_dir.string()}});
  }

  bool device_lost() const { return device_lost_; }

  void Drain() {
    stopping_ = true;
    log_.Write(LogLevel::kInfo, "draining", {{"seconds", absl::StrCat(flags_.drain_seconds)}});
    rpc_->BeginDrain();
    engine_->Drain(absl::Now() + absl::Seconds(flags_.drain_seconds));
    rpc_for_jobs_ = nullptr;
    rpc_->Stop(absl::Now() + absl::Seconds(1));
    jobs_->Shutdown();
    log_.Write(LogLevel::kInfo, "stopped");
  }

 private:
  absl::Status OpenJobs() {
    JobManager::Options options;
    options.database_path = (flags_.data_dir / "jobs.sqlite").string();
    options.on_change = [this](const Job& job) { OnJobChange(job); };
    options.on_linear = [this](const LinearReport& linear, absl::Duration took) {
      metrics_.OnLinear(linear, took);
    };
    auto jobs = JobManager::Open(std::move(options), [this](const Job& job, JobContext& context) {
      GiveWayToAnswers();
      return RunQuantizeJob(job, context, work_);
    });
    if (jobs.ok()) jobs_ = *std::move(jobs);
    return jobs.status();
  }

  absl::Status Listen() {
    RpcOptions options;
    options.listen = flags_.listen;
    options.insecure_listen_anywhere = flags_.insecure_listen_anywhere;
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    options.facts = {.version = BABAI_VERSION,
                     .device = NameOf(device_),
                     .threads = flags_.threads > 0 ? flags_.threads : cores,
                     .max_queue = flags_.max_queue};
    options.on_call = [this](const CallRecord& call) { OnCall(call); };
    RpcBackends backends{engine_.get(), catalog_.get(), jobs_.get(),
                         [this](const QuantizeSpec& spec) { return CheckQuantize(spec, work_); }};
    auto rpc = RpcServer::Start(std::move(options), std::move(backends));
    if (!rpc.ok()) return rpc.status();
    rpc_ = *std::move(rpc);
    rpc_for_jobs_ = rpc_.get();
    if (flags_.metrics_listen.empty()) return absl::OkStatus();
    auto address = metrics_.Serve(flags_.metrics_listen);
    if (address.ok()) metrics_address_ = *std::move(address);
    return address.status();
  }

  void OnJobChange(const Job& job) {
    metrics_.OnJob(job);
    if (RpcServer* rpc = rpc_for_jobs_) rpc->OnJobChange(job.id);
    const JobProgress& progress = job.progress;
    if (progress.state == JobState::kReady) ServeTheNewOne(job.spec.name);
    if (ReasonOf(job.error) == reason::kDeviceLost) OnDeviceLost();
    const LogLevel level = progress.state == JobState::kFailed ? LogLevel::kWarning
                           : IsTerminal(progress.state)        ? LogLevel::kInfo
                                                               : LogLevel::kDebug;
    log_.Write(level, "job",
               {{"id", job.id},
                {"state", std::string(JobStateName(progress.state))},
                {"model", job.spec.name},
                {"phase", progress.phase},
                {"error", std::string(job.error.message())}});
  }

  // A job may have replaced a model that is in memory: the next request loads what is on the disk.
  void ServeTheNewOne(const std::string& name) {
    if (engine_->Status(name).state == LoadState::kUnloaded) return;
    if (const absl::Status s = engine_->Unload(name); !s.ok()) {
      log_.Write(LogLevel::kWarning, "the replaced model is busy and still serves",
                 {{"model", name}, {"error", std::string(s.message())}});
    }
  }

  // Nothing in this process can use the device any more: as if somebody had asked it to stop.
  void OnDeviceLost() {
    if (device_lost_.exchange(true)) return;
    log_.Write(LogLevel::kError, "the device has failed; stopping", {{"device", NameOf(device_)}});
    if (!stopping_.exchange(true)) kill(getpid(), SIGTERM);
  }

  void OnCall(const CallRecord& call) {
    metrics_.OnCall(call.method, call.status.code(), call.took);
    const bool bug = call.status.code() == absl::StatusCode::kInternal ||
                     call.status.code() == absl::StatusCode::kUnknown;
    log_.Write(bug ? LogLevel::kError : LogLevel::kDebug, "call",
               {{"method", std::string(call.method)},
                {"code", absl::StatusCodeToString(call.status.code())},
                {"reason", ReasonOf(call.status)},
                {"seconds", absl::StrCat(absl::ToDoubleSeconds(call.took))},
                {"peer", call.peer},
                {"request_id", call.request_id},
                {"message", std::string(call.status.message())}});
  }

  const ServerFlags& flags_;
  const ServerParts& parts_;
  const Log& log_;
  Device device_ = Device::kCpu;
  std::atomic<bool> device_lost_ = false;
  std::atomic<bool> stopping_ = false;  // Drain() has begun, or SIGTERM was sent for it
  Metrics metrics_;
  std::unique_ptr<Catalog> catalog_;
  std::unique_ptr<Engine> engine_;
  QuantizeEnvironment work_;
  std::atomic<RpcServer*> rpc_for_jobs_ = nullptr;
  std::unique_ptr<JobManager> jobs_;
  std::unique_ptr<RpcServer> rpc_;
  std::string metrics_address_;
};

}  // namespace

int RunServer(const ServerFlags& flags, const ServerParts& parts) {
  const sigset_t stop_signals = BlockStopSignals();
  const Log log(flags.log_format, flags.log_level);
  Server server(flags, parts, log);
  if (const absl::Status s = server.Start(); !s.ok()) {
    log.Write(LogLevel::kError, "cannot start",
              {{"code", absl::StatusCodeToString(s.code())},
               {"reason", ReasonOf(s)},
               {"field", FieldOf(s)},
               {"message", std::string(s.message())}});
    return 1;
  }
  server.SayReady();
  int received = 0;
  sigwait(&stop_signals, &received);
  std::thread([stop_signals] {
    int again = 0;
    sigwait(&stop_signals, &again);
    _exit(1);
  }).detach();
  server.Drain();
  return server.device_lost() ? kExitDeviceLost : 0;
}

}  // namespace babai
