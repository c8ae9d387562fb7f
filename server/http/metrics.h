// The Prometheus page. It turns what the engine, the jobs and the calls report into series, and
// reads gauges when it is scraped. Names are underscore spellings of the field's usual ones, so
// that dashboards translate word by word.
//
// Series are bounded: the only label a client can choose is a model's name, and after 200 of them
// the rest share the name "other".
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/engine.h"
#include "server/jobs/job.h"
#include "server/store/catalog.h"

namespace babai {

// Thread-safe.
class Metrics final : public EngineObserver {
 public:
  explicit Metrics(std::string_view version);
  ~Metrics() override;

  // Where gauges come from; not owned. Call it once both exist, and Detach() before they go.
  void Attach(const Engine* engine, const Catalog* catalog);
  void Detach();

  void OnFirstToken(std::string_view model, absl::Duration since_arrival,
                    absl::Duration queued) override;
  void OnInterToken(std::string_view model, absl::Duration gap) override;
  void OnFinished(std::string_view model, const Finish& finish, absl::Duration end_to_end) override;
  void OnLoaded(std::string_view model, absl::Duration took, bool ok) override;

  // `method` must be a literal of a bounded set: "GenerationService/Generate".
  void OnCall(std::string_view method, absl::StatusCode code, absl::Duration took);
  void OnJob(const Job& job);
  void OnLinear(const LinearReport& linear, absl::Duration took);

  // Starts serving GET /metrics; host:port with port 0 = any free one. Returns the real address.
  // Unavailable: the port is taken.
  absl::StatusOr<std::string> Serve(const std::string& listen);

  // The page as text.
  std::string Page() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace babai
