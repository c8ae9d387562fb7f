#include "server/http/scrape.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "prometheus/metric_family.h"

namespace babai {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(std::string name, std::string help, MetricType type) {
  MetricFamily family;
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

void Add(MetricFamily& family, double value, const std::string& model = "") {
  ClientMetric metric;
  if (!model.empty()) metric.label.push_back({"model_name", model});
  if (family.type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
}

double ResidentBytes() {
  long total = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  const int read = std::fscanf(file, "%ld %ld", &total, &resident);
  std::fclose(file);
  return read == 2 ? static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) : 0;
}

}  // namespace

void Scrape::Total::Update(int64_t now) {
  if (now < last) before += last;
  last = now;
}

void Scrape::Attach(const Engine* engine, const Catalog* catalog) {
  std::lock_guard lock(mutex_);
  engine_ = engine;
  catalog_ = catalog;
}

std::vector<MetricFamily> Scrape::Collect() const {
  std::lock_guard lock(mutex_);
  auto running =
      Family("babai_num_requests_running", "Sequences now generating", MetricType::Gauge);
  auto waiting = Family("babai_num_requests_waiting", "Requests in the queue", MetricType::Gauge);
  auto kv =
      Family("babai_kv_cache_usage_ratio", "Used share of the KV cache, 0..1", MetricType::Gauge);
  auto prompt = Family("babai_prompt_tokens_total", "Prompt tokens computed", MetricType::Counter);
  auto generation =
      Family("babai_generation_tokens_total", "Tokens generated", MetricType::Counter);
  auto preemptions =
      Family("babai_num_preemptions_total", "Sequences put back to the queue for want of KV blocks",
             MetricType::Counter);
  auto steps = Family("babai_engine_steps_total", "Forward steps", MetricType::Counter);
  auto loaded = Family("babai_models_loaded", "Models in memory", MetricType::Gauge);
  auto cache =
      Family("babai_model_cache_bytes", "Size of the stored models on disk", MetricType::Gauge);
  auto resident =
      Family("process_resident_memory_bytes", "Resident memory of the process", MetricType::Gauge);

  if (engine_ != nullptr) {
    const std::vector<EngineStats> all = engine_->Stats();
    Add(loaded, static_cast<double>(all.size()));
    for (const EngineStats& stats : all) {
      Add(running, static_cast<double>(stats.running), stats.model);
      Add(waiting, static_cast<double>(stats.waiting), stats.model);
      const double blocks = static_cast<double>(stats.kv_blocks);
      Add(kv, blocks > 0 ? static_cast<double>(stats.kv_blocks_used) / blocks : 0, stats.model);
      Totals& totals = totals_[stats.model];
      totals.prompt_tokens.Update(stats.prompt_tokens);
      totals.generation_tokens.Update(stats.generation_tokens);
      totals.preemptions.Update(stats.preemptions);
      totals.steps.Update(stats.steps);
    }
  }
  if (catalog_ != nullptr) {
    double bytes = 0;
    for (const std::string& name : catalog_->Names()) {
      bytes += static_cast<double>(catalog_->StoredBytes(name));
    }
    Add(cache, bytes);
    std::erase_if(totals_, [&](const auto& entry) { return !catalog_->Exists(entry.first); });
  }
  for (const auto& [model, totals] : totals_) {
    Add(prompt, totals.prompt_tokens.value(), model);
    Add(generation, totals.generation_tokens.value(), model);
    Add(preemptions, totals.preemptions.value(), model);
    Add(steps, totals.steps.value(), model);
  }
  Add(resident, ResidentBytes());
  return {running, waiting, kv, prompt, generation, preemptions, steps, loaded, cache, resident};
}

}  // namespace babai
