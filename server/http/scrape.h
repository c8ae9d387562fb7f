// Series read from the engine and the catalog at the moment of a scrape.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "prometheus/collectable.h"
#include "server/engine/engine.h"
#include "server/store/catalog.h"

namespace babai {

// Thread-safe.
class Scrape final : public prometheus::Collectable {
 public:
  void Attach(const Engine* engine, const Catalog* catalog);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  // Counters of a model that was unloaded and loaded again start at zero; a counter on the page may
  // neither fall nor vanish, so what was counted before is kept here while the model is stored.
  struct Total {
    int64_t before = 0, last = 0;
    void Update(int64_t now);
    double value() const { return static_cast<double>(before + last); }
  };
  struct Totals {
    Total prompt_tokens, generation_tokens, preemptions, steps;
  };

  mutable std::mutex mutex_;
  const Engine* engine_ = nullptr;
  const Catalog* catalog_ = nullptr;
  mutable std::map<std::string, Totals> totals_;
};

}  // namespace babai
