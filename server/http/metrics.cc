#include "server/http/metrics.h"

#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/http/scrape.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

constexpr size_t kMaxModelNames = 200;

// Seconds. Per token from 0.5 ms: a small model on a fast device is well below a server's usual 10
// ms.
const Buckets kPerToken = {0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02,
                           0.03,   0.05,  0.075, 0.1,   0.15,  0.2,    0.3,  0.5,   1};
const Buckets kFirstToken = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                             0.5,   1,      2.5,   5,    10,    30,   60};
const Buckets kEndToEnd = {0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600};
const Buckets kLoad = {0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};
const Buckets kLayer = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120};
const Buckets kJob = {1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 14400, 28800, 86400};
const Buckets kRelativeError = {0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.075,
                                0.1,   0.15,  0.2,  0.3,  0.5,  0.75, 1};
const Buckets kBitsPerWeight = {1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 10};
const Buckets kClipRatio = {0.0001, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5};

Family<Histogram>& AddHistogram(prometheus::Registry& registry, const char* name,
                                const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
}

Family<Counter>& AddCounter(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

Family<Gauge>& AddGauge(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

// Active states are a gauge; where a job ended is a counter.
constexpr JobState kActiveStates[] = {JobState::kQueued, JobState::kFetching,
                                      JobState::kCalibrating, JobState::kQuantizing,
                                      JobState::kEvaluating};

std::string ResultName(JobState state) {
  switch (state) {
    case JobState::kReady:
      return "ready";
    case JobState::kCancelled:
      return "cancelled";
    default:
      return "failed";
  }
}

}  // namespace

struct Metrics::State {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  std::shared_ptr<Scrape> scrape = std::make_shared<Scrape>();

  Family<Histogram>& first_token = AddHistogram(*registry, "babai_time_to_first_token_seconds",
                                                "Arrival of a request to its first token");
  Family<Histogram>& inter_token = AddHistogram(*registry, "babai_inter_token_latency_seconds",
                                                "From one token of a sequence to its next");
  Family<Histogram>& end_to_end = AddHistogram(*registry, "babai_e2e_request_latency_seconds",
                                               "Arrival of a request to its end");
  Family<Histogram>& queue_time = AddHistogram(*registry, "babai_request_queue_time_seconds",
                                               "Arrival of a request to its first step");
  Family<Counter>& success = AddCounter(*registry, "babai_request_success_total",
                                        "Requests that ended without an error, by finish reason");
  Family<Counter>& failure = AddCounter(*registry, "babai_request_failure_total",
                                        "Accepted requests that ended with an error, by reason");
  Family<Histogram>& load =
      AddHistogram(*registry, "babai_model_load_duration_seconds", "Loading a model into memory");
  Family<Counter>& load_failures =
      AddCounter(*registry, "babai_model_load_failures_total", "Loads that failed");
  Family<Counter>& calls =
      AddCounter(*registry, "babai_grpc_requests_total", "Finished calls by method and code");
  Family<Histogram>& call_time = AddHistogram(*registry, "babai_grpc_request_duration_seconds",
                                              "Calls from arrival to end, by method");
  Family<Gauge>& jobs = AddGauge(*registry, "babai_quantize_jobs", "Unfinished jobs by state");
  Family<Counter>& job_results =
      AddCounter(*registry, "babai_quantize_jobs_total",
                 "Jobs that ended in this process, by result and reason");
  Family<Histogram>& job_time = AddHistogram(*registry, "babai_quantize_job_duration_seconds",
                                             "Jobs from start to end, by result");
  Family<Counter>& calibration_tokens = AddCounter(
      *registry, "babai_quantize_calibration_tokens_total", "Calibration tokens of ended jobs");
  Family<Histogram>& layer_time =
      AddHistogram(*registry, "babai_quantize_layer_duration_seconds", "Quantizing one linear");
  Family<Histogram>& layer_error = AddHistogram(*registry, "babai_quantize_layer_relative_error",
                                                "Relative error of the quantized linears");
  Family<Histogram>& layer_bits =
      AddHistogram(*registry, "babai_quantize_layer_bits_per_weight",
                   "Stored bits a weight of the quantized linears, everything counted");
  Family<Histogram>& layer_clip =
      AddHistogram(*registry, "babai_quantize_layer_clip_ratio",
                   "Share of a linear's weights that wanted a value outside the grid");
  Family<Counter>& layers =
      AddCounter(*registry, "babai_quantize_layers_total", "Linears quantized");

  std::mutex mutex;
  std::set<std::string, std::less<>> models;     // names that have series
  std::map<std::string, JobState> active_jobs;   // by id
  std::unique_ptr<prometheus::Exposer> exposer;  // last: it reads the rest

  prometheus::Labels ModelLabel(std::string_view model) {
    std::lock_guard lock(mutex);
    if (!models.contains(model)) {
      if (models.size() >= kMaxModelNames) return {{"model_name", "other"}};
      models.emplace(model);
    }
    return {{"model_name", std::string(model)}};
  }

  void SetJobGauges() {
    std::map<JobState, int> count;
    for (const auto& [id, state] : active_jobs) ++count[state];
    for (const JobState state : kActiveStates) {
      jobs.Add({{"state", std::string(JobStateName(state))}}).Set(count[state]);
    }
  }
};

Metrics::Metrics(std::string_view version) : state_(std::make_unique<State>()) {
  AddGauge(*state_->registry, "babai_build_info", "1, with the version as a label")
      .Add({{"version", std::string(version)}})
      .Set(1);
  state_->SetJobGauges();
}

Metrics::~Metrics() = default;

void Metrics::Attach(const Engine* engine, const Catalog* catalog) {
  state_->scrape->Attach(engine, catalog);
}

void Metrics::Detach() { state_->scrape->Attach(nullptr, nullptr); }

void Metrics::OnFirstToken(std::string_view model, absl::Duration since_arrival,
                           absl::Duration queued) {
  const auto label = state_->ModelLabel(model);
  state_->first_token.Add(label, kFirstToken).Observe(absl::ToDoubleSeconds(since_arrival));
  state_->queue_time.Add(label, kFirstToken).Observe(absl::ToDoubleSeconds(queued));
}

void Metrics::OnInterToken(std::string_view model, absl::Duration gap) {
  state_->inter_token.Add(state_->ModelLabel(model), kPerToken).Observe(absl::ToDoubleSeconds(gap));
}

void Metrics::OnFinished(std::string_view model, const Finish& finish, absl::Duration end_to_end) {
  auto label = state_->ModelLabel(model);
  state_->end_to_end.Add(label, kEndToEnd).Observe(absl::ToDoubleSeconds(end_to_end));
  if (finish.status.ok()) {
    label["finished_reason"] = std::string(FinishReasonName(finish.reason));
    state_->success.Add(label).Increment();
  } else {
    const std::string why = ReasonOf(finish.status);
    label["reason"] = why.empty() ? std::string(reason::kInternal) : why;
    state_->failure.Add(label).Increment();
  }
}

void Metrics::OnLoaded(std::string_view model, absl::Duration took, bool ok) {
  const auto label = state_->ModelLabel(model);
  if (ok) {
    state_->load.Add(label, kLoad).Observe(absl::ToDoubleSeconds(took));
  } else {
    state_->load_failures.Add(label).Increment();
  }
}

void Metrics::OnCall(std::string_view method, absl::StatusCode code, absl::Duration took) {
  const std::string name(method);
  state_->calls.Add({{"method", name}, {"code", absl::StatusCodeToString(code)}}).Increment();
  state_->call_time.Add({{"method", name}}, kEndToEnd).Observe(absl::ToDoubleSeconds(took));
}

void Metrics::OnJob(const Job& job) {
  const JobState now = job.progress.state;
  {
    std::lock_guard lock(state_->mutex);
    if (!IsTerminal(now)) {
      state_->active_jobs[job.id] = now;
      return state_->SetJobGauges();
    }
    if (state_->active_jobs.erase(job.id) == 0) return;  // its end was counted
    state_->SetJobGauges();
  }
  const std::string result = ResultName(now);
  const std::string why = job.error.ok() ? "" : ReasonOf(job.error);
  state_->job_results.Add({{"result", result}, {"reason", why}}).Increment();
  state_->job_time.Add({{"result", result}}, kJob).Observe(job.progress.elapsed_seconds);
  state_->calibration_tokens.Add({}).Increment(
      static_cast<double>(job.progress.calibration_tokens));
}

void Metrics::OnLinear(const LinearReport& linear, absl::Duration took) {
  state_->layer_time.Add({{"phase", "solve"}}, kLayer).Observe(absl::ToDoubleSeconds(took));
  state_->layer_error.Add({}, kRelativeError).Observe(linear.relative_error);
  state_->layer_bits.Add({}, kBitsPerWeight).Observe(linear.bits_per_weight);
  state_->layer_clip.Add({}, kClipRatio).Observe(linear.clip_rate);
  state_->layers.Add({}).Increment();
}

absl::StatusOr<std::string> Metrics::Serve(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos) return InvalidField("metrics_listen", "must be host:port");
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(listen, /*num_threads=*/2);
    exposer->RegisterCollectable(state_->registry);
    exposer->RegisterCollectable(state_->scrape);
    const std::vector<int> ports = exposer->GetListeningPorts();
    state_->exposer = std::move(exposer);
    return absl::StrCat(listen.substr(0, colon), ":", ports.empty() ? 0 : ports.front());
  } catch (const std::exception&) {
    return Refuse(absl::StatusCode::kUnavailable, reason::kIoError, "metrics_listen",
                  absl::StrCat("cannot listen on '", listen,
                               "': not an address of this host, or the port is taken"));
  }
}

std::string Metrics::Page() const {
  std::vector<prometheus::MetricFamily> families = state_->registry->Collect();
  for (auto& family : state_->scrape->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace babai
