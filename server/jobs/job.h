// Quantize jobs: a durable table, worker threads, progress. The table is SQLite behind JobStore;
// the work itself is server/jobs/quantize_job.h.
//
// States:  QUEUED -> FETCHING -> CALIBRATING -> QUANTIZING -> EVALUATING -> READY
//          any of them -> CANCELLED | FAILED.  After a restart an unfinished job starts again.
// Other states only follow each other within one run of the work: a job that was handed back at
// Shutdown(), or that outlived its process, is QUEUED again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/quant/recipe.h"
#include "server/store/packed_model.h"

namespace babai {

enum class JobState {
  kQueued,
  kFetching,
  kCalibrating,
  kQuantizing,
  kEvaluating,
  kReady,
  kCancelled,
  kFailed
};
std::string_view JobStateName(JobState state);  // "QUEUED", ...
bool IsTerminal(JobState state);

// Where calibration tokens come from. Exactly one source is used.
struct CalibrationSpec {
  enum class Source { kTexts, kTokenIds, kUri, kSelf } source = Source::kSelf;
  std::vector<std::string> texts;               // kTexts
  std::vector<std::vector<int32_t>> token_ids;  // kTokenIds
  std::string uri;        // kUri: file:// .txt or .jsonl ({"text": ...} a line)
  int64_t samples = 128;  // sequences wanted
  int64_t length = 0;     // tokens a sequence; 0 = 512, or the model's context if smaller
  int64_t held_out = 0;   // further sequences kept for the evaluation; 0 = max(1, samples / 16)
  uint64_t seed = 1;      // self-calibration
};

struct QuantizeSpec {
  std::string request_id;  // optional; makes a retry safe
  std::string source_uri;
  std::string name;  // of the resulting model
  Recipe recipe;
  CalibrationSpec calibration;
  bool overwrite = false;  // replace a model of the same name
};

struct JobProgress {
  JobState state = JobState::kQueued;
  double fraction = 0;            // 0..1 of the whole job
  int64_t block = 0, blocks = 0;  // decoder blocks done, total
  std::string phase;              // human-readable: "quantizing block 7 of 30"
  std::optional<double> eta_seconds;
  double elapsed_seconds = 0;
  int64_t calibration_tokens = 0;
  double worst_relative_error = 0;
  std::string worst_linear;
  std::vector<std::string> warnings;
};

struct Job {
  std::string id;     // "job-" + 16 hex digits
  QuantizeSpec spec;  // texts and ids are not kept in memory once the job ended
  JobProgress progress;
  int64_t revision = 0;  // grows with every change; what WatchQuantization resumes from
  absl::Status error;    // FAILED and CANCELLED: why
  absl::Time created, started, finished;
  int restarts = 0;         // times a process found it in the middle: its predecessor died on it
  std::string content_key;  // empty until the source was read
  std::vector<LinearReport> linears;  // of finished blocks
};

// What the work reports to and asks of its surroundings. Called from the worker's thread.
class JobContext {
 public:
  virtual ~JobContext() = default;
  virtual void Report(const JobProgress& progress) = 0;
  virtual void ReportLinear(const LinearReport& linear, absl::Duration took) = 0;
  virtual void ReportContentKey(std::string_view key) {}
  virtual bool cancelled() const = 0;  // cheap; polled often
};

// Runs one job to the end; returns the committed manifest. Injected so that tests use a fake.
using JobWork = std::function<absl::StatusOr<Manifest>(const Job&, JobContext&)>;

// Thread-safe. Every accepted change is durable before the call returns.
class JobManager {
 public:
  struct Options {
    std::string database_path;
    int workers = 1;
    std::function<void(const Job&)> on_change;  // metrics, logs; called without locks held
    std::function<void(const LinearReport&, absl::Duration)> on_linear;
  };
  // Opens the table and restarts unfinished jobs. A job that the third process died on becomes
  // FAILED (poisoned) instead. Progress is written at most once a second, changes of state at once.
  static absl::StatusOr<std::unique_ptr<JobManager>> Open(Options options, JobWork work);
  virtual ~JobManager() = default;  // stops workers; a running job goes back to QUEUED in the table

  // The same request_id with the same spec returns the earlier job; with another spec
  // AlreadyExists.
  virtual absl::StatusOr<Job> Submit(const QuantizeSpec& spec) = 0;
  virtual absl::StatusOr<Job> Get(std::string_view id) const = 0;  // NotFound JOB_NOT_FOUND
  // Newest first. `page_token` is empty or the previous call's next_page_token.
  virtual absl::StatusOr<std::vector<Job>> List(int64_t page_size, std::string_view page_token,
                                                std::string* next_page_token) const = 0;
  virtual absl::Status Cancel(std::string_view id) = 0;  // idempotent; terminal jobs are left alone
  virtual absl::Status Delete(std::string_view id) = 0;  // FailedPrecondition unless terminal
  // Waits until revision > after_revision, the job is terminal, `deadline` or `stop()`; returns the
  // job as it is.
  virtual absl::StatusOr<Job> WaitForChange(std::string_view id, int64_t after_revision,
                                            absl::Time deadline,
                                            const std::function<bool()>& stop) const = 0;
  virtual void Shutdown() = 0;  // stop taking and running work; idempotent
};

}  // namespace babai
