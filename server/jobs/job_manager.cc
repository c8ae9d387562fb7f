// One mutex guards the table in memory and the database behind it: a job changes a few times a
// second at most. Worker threads take jobs in the order of submission.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "absl/strings/str_format.h"
#include "server/jobs/job.h"
#include "server/jobs/job_table.h"
#include "server/jobs/spec_json.h"
#include "server/reason/reason.h"
#include "server/store/sha256.h"

namespace babai {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr auto kWriteInterval = std::chrono::seconds(1);
constexpr auto kStopPollInterval = std::chrono::milliseconds(50);
constexpr int kMaxRestarts = 3;

// What the manager knows of a job. Guarded by the manager's mutex, but for `stop`.
struct Entry {
  JobRow row;
  bool running = false;
  std::atomic<bool> stop = false;  // what JobContext::cancelled() answers
  SteadyClock::time_point started, written;
  size_t linears_written = 0;

  Job& job() { return row.job; }
  bool terminal() const { return IsTerminal(row.job.progress.state); }
  Job Snapshot() const {
    Job copy = row.job;
    if (running) {
      const std::chrono::duration<double> elapsed = SteadyClock::now() - started;
      copy.progress.elapsed_seconds = elapsed.count();
    }
    return copy;
  }
};

std::string NewJobId() {
  std::random_device device;
  return absl::StrFormat("job-%08x%08x", device(), device());
}

std::string SpecDigest(const QuantizeSpec& spec) {
  Sha256 hash;
  hash.AddField(SpecToJson(spec));
  hash.AddField(CalibrationDataToJson(spec.calibration));
  return hash.HexDigest();
}

absl::Status CancelledByCaller() {
  return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "", "the job was cancelled");
}

absl::Status Poisoned() {
  return Refuse(absl::StatusCode::kInternal, reason::kInternal, "",
                "the server died three times while it ran this job; it is not tried again");
}

class Manager final : public JobManager {
 public:
  Manager(Options options, JobWork work, std::unique_ptr<JobTable> table)
      : options_(std::move(options)), work_(std::move(work)), table_(std::move(table)) {}

  ~Manager() override { Shutdown(); }

  absl::Status Restore();
  void StartWorkers();

  absl::StatusOr<Job> Submit(const QuantizeSpec& spec) override;
  absl::StatusOr<Job> Get(std::string_view id) const override;
  absl::StatusOr<std::vector<Job>> List(int64_t page_size, std::string_view page_token,
                                        std::string* next_page_token) const override;
  absl::Status Cancel(std::string_view id) override;
  absl::Status Delete(std::string_view id) override;
  absl::StatusOr<Job> WaitForChange(std::string_view id, int64_t after_revision,
                                    absl::Time deadline,
                                    const std::function<bool()>& stop) const override;
  void Shutdown() override;

 private:
  class Context;
  using EntryPtr = std::shared_ptr<Entry>;
  using Lock = std::unique_lock<std::mutex>;

  // All called with the mutex held.
  absl::StatusOr<EntryPtr> Find(std::string_view id) const;
  absl::StatusOr<Job> EarlierJob(const QuantizeSpec& spec, const std::string& digest) const;
  absl::Status RestoreUnfinished(Entry& entry);
  absl::Status Write(Entry& entry);
  void Changed(Entry& entry);
  void Finish(Entry& entry, absl::StatusOr<Manifest> result);
  void HandBack(Entry& entry);

  void WorkerLoop();
  void RunEntry(Lock& lock, const EntryPtr& entry);
  absl::StatusOr<Manifest> CallWork(const EntryPtr& entry, const Job& job);
  void Notify(const Job& job) const {
    if (options_.on_change) options_.on_change(job);
  }

  const Options options_;
  const JobWork work_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;  // any job's revision, the queue, stopping_
  std::unique_ptr<JobTable> table_;
  std::map<std::string, EntryPtr, std::less<>> entries_;
  std::deque<EntryPtr> queue_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

// Forwards a running job's reports. Lives on the worker's stack.
class Manager::Context final : public JobContext {
 public:
  Context(Manager& manager, EntryPtr entry) : manager_(manager), entry_(std::move(entry)) {}

  void Report(const JobProgress& progress) override {
    Change([&](Job& job) {
      // An end is what the work's return value says, never a report.
      const JobState state = IsTerminal(progress.state) ? job.progress.state : progress.state;
      job.progress = progress;
      job.progress.state = state;
    });
  }

  void ReportLinear(const LinearReport& linear, absl::Duration took) override {
    {
      const Lock lock(manager_.mutex_);
      entry_->job().linears.push_back(linear);
    }
    if (manager_.options_.on_linear) manager_.options_.on_linear(linear, took);
  }

  void ReportContentKey(std::string_view key) override {
    Change([&](Job& job) { job.content_key = std::string(key); });
  }

  bool cancelled() const override { return entry_->stop.load(std::memory_order_relaxed); }

 private:
  template <typename Fn>
  void Change(Fn change) {
    Job snapshot;
    {
      const Lock lock(manager_.mutex_);
      const JobState before = entry_->job().progress.state;
      change(entry_->job());
      const bool state_changed = entry_->job().progress.state != before;
      manager_.Changed(*entry_);
      if (state_changed || SteadyClock::now() - entry_->written >= kWriteInterval) {
        // The job is not lost with a report: the next one, or its end, writes again.
        (void)manager_.Write(*entry_);
      }
      snapshot = entry_->Snapshot();
    }
    manager_.Notify(snapshot);
  }

  Manager& manager_;
  const EntryPtr entry_;
};

absl::Status Manager::Restore() {
  const Lock lock(mutex_);
  auto rows = table_->ReadAll();
  if (!rows.ok()) return rows.status();
  for (JobRow& row : *rows) {
    auto entry = std::make_shared<Entry>();
    entry->row = std::move(row);
    entries_[entry->job().id] = entry;
    if (entry->terminal()) continue;
    if (auto status = RestoreUnfinished(*entry); !status.ok()) return status;
    if (!entry->terminal()) queue_.push_back(entry);
  }
  return absl::OkStatus();
}

absl::Status Manager::RestoreUnfinished(Entry& entry) {
  // Clients may have seen revisions that the last process never wrote; go past them.
  constexpr int64_t kMoreThanUnwritten = 1 << 20;
  entry.job().revision += kMoreThanUnwritten;
  if (entry.job().progress.state != JobState::kQueued) ++entry.job().restarts;
  if (entry.row.cancel_requested) {
    Finish(entry, CancelledByCaller());
  } else if (entry.job().restarts >= kMaxRestarts) {
    Finish(entry, Poisoned());
  } else {
    HandBack(entry);
  }
  return Write(entry);
}

void Manager::StartWorkers() {
  for (int i = 0; i < std::max(1, options_.workers); ++i) {
    workers_.emplace_back([this] { WorkerLoop(); });
  }
}

absl::StatusOr<Manager::EntryPtr> Manager::Find(std::string_view id) const {
  const auto it = entries_.find(id);
  if (it != entries_.end()) return it->second;
  return Refuse(absl::StatusCode::kNotFound, reason::kJobNotFound, "id",
                "there is no job '" + std::string(id.substr(0, 63)) + "'");
}

absl::Status Manager::Write(Entry& entry) {
  entry.written = SteadyClock::now();
  if (entry.linears_written < entry.job().linears.size()) {
    const auto status = table_->InsertLinears(entry.job(), entry.linears_written);
    if (!status.ok()) return status;
    entry.linears_written = entry.job().linears.size();
  }
  return table_->Update(entry.row);
}

void Manager::Changed(Entry& entry) {
  ++entry.job().revision;
  changed_.notify_all();
}

absl::StatusOr<Job> Manager::EarlierJob(const QuantizeSpec& spec, const std::string& digest) const {
  for (const auto& [id, entry] : entries_) {
    if (entry->row.job.spec.request_id != spec.request_id) continue;
    if (entry->row.spec_digest == digest) return entry->Snapshot();
    return Refuse(absl::StatusCode::kAlreadyExists, reason::kRequestIdReused, "request_id",
                  "was used before for another request (" + id + ")");
  }
  return absl::NotFoundError("");
}

absl::StatusOr<Job> Manager::Submit(const QuantizeSpec& spec) {
  const std::string digest = SpecDigest(spec);
  Job snapshot;
  {
    const Lock lock(mutex_);
    if (!spec.request_id.empty()) {
      auto earlier = EarlierJob(spec, digest);
      if (!absl::IsNotFound(earlier.status())) return earlier;
    }
    if (stopping_) {
      return Refuse(absl::StatusCode::kUnavailable, reason::kDraining, "",
                    "the server is shutting down");
    }
    auto entry = std::make_shared<Entry>();
    Job& job = entry->job();
    job.id = NewJobId();
    job.spec = spec;
    job.progress.phase = "waiting for a worker";
    job.revision = 1;
    job.created = absl::Now();
    job.started = job.finished = absl::InfinitePast();
    entry->row.spec_digest = digest;
    if (auto status = table_->Insert(entry->row); !status.ok()) return status;
    // The worker reads the calibration data back when the job's turn has come.
    job.spec.calibration.texts = {};
    job.spec.calibration.token_ids = {};
    entries_[job.id] = entry;
    queue_.push_back(entry);
    changed_.notify_all();
    snapshot = entry->Snapshot();
  }
  Notify(snapshot);
  return snapshot;
}

absl::StatusOr<Job> Manager::Get(std::string_view id) const {
  const Lock lock(mutex_);
  auto entry = Find(id);
  if (!entry.ok()) return entry.status();
  return (*entry)->Snapshot();
}

absl::StatusOr<std::vector<Job>> Manager::List(int64_t page_size, std::string_view page_token,
                                               std::string* next_page_token) const {
  constexpr int64_t kMaxPage = 1000;
  if (page_size <= 0) return InvalidField("page_size", "must be positive");
  const size_t wanted = std::min(page_size, kMaxPage);
  int64_t before = INT64_MAX;  // the token is the sequence of the last job of the page before
  if (!page_token.empty()) {
    const bool digits =
        page_token.size() <= 18 && std::all_of(page_token.begin(), page_token.end(),
                                               [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) return InvalidField("page_token", "was not made by this server");
    before = std::stoll(std::string(page_token));
  }
  const Lock lock(mutex_);
  std::vector<EntryPtr> page;
  for (const auto& [id, entry] : entries_) {
    if (entry->row.sequence < before) page.push_back(entry);
  }
  std::sort(page.begin(), page.end(),
            [](const EntryPtr& a, const EntryPtr& b) { return a->row.sequence > b->row.sequence; });
  next_page_token->clear();
  if (page.size() > wanted) {
    page.resize(wanted);
    *next_page_token = std::to_string(page.back()->row.sequence);
  }
  std::vector<Job> jobs;
  for (const EntryPtr& entry : page) jobs.push_back(entry->Snapshot());
  return jobs;
}

absl::Status Manager::Cancel(std::string_view id) {
  Job snapshot;
  {
    const Lock lock(mutex_);
    auto found = Find(id);
    if (!found.ok()) return found.status();
    Entry& entry = **found;
    if (entry.terminal() || entry.row.cancel_requested) return absl::OkStatus();
    JobRow before = entry.row;
    entry.row.cancel_requested = true;
    if (!entry.running) {
      Finish(entry, CancelledByCaller());
      Changed(entry);
    }
    if (auto status = Write(entry); !status.ok()) {
      entry.row = std::move(before);
      return status;
    }
    entry.stop = true;
    queue_.erase(std::remove(queue_.begin(), queue_.end(), *found), queue_.end());
    snapshot = entry.Snapshot();
  }
  Notify(snapshot);
  return absl::OkStatus();
}

absl::Status Manager::Delete(std::string_view id) {
  const Lock lock(mutex_);
  auto entry = Find(id);
  if (!entry.ok()) return entry.status();
  if (!(*entry)->terminal()) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kModelBusy, "id",
                  "the job has not ended; cancel it first");
  }
  if (auto status = table_->Delete(id); !status.ok()) return status;
  entries_.erase(std::string(id));
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<Job> Manager::WaitForChange(std::string_view id, int64_t after_revision,
                                           absl::Time deadline,
                                           const std::function<bool()>& stop) const {
  Lock lock(mutex_);
  for (;;) {
    auto found = Find(id);
    if (!found.ok()) return found.status();
    const Entry& entry = **found;
    const bool enough = entry.row.job.revision > after_revision || entry.terminal() || stopping_;
    if (enough || absl::Now() >= deadline) return entry.Snapshot();
    lock.unlock();  // stop() is the caller's code
    const bool stopped = stop && stop();
    lock.lock();
    if (stopped) return entry.Snapshot();
    changed_.wait_for(lock,
                      std::min<std::chrono::nanoseconds>(
                          kStopPollInterval, absl::ToChronoNanoseconds(deadline - absl::Now())));
  }
}

void Manager::Shutdown() {
  std::vector<std::thread> workers;
  {
    const Lock lock(mutex_);
    stopping_ = true;
    for (const auto& [id, entry] : entries_) {
      if (entry->running) entry->stop = true;
    }
    changed_.notify_all();
    workers.swap(workers_);
  }
  for (std::thread& worker : workers) worker.join();
}

void Manager::WorkerLoop() {
  Lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const EntryPtr entry = queue_.front();
    queue_.pop_front();
    RunEntry(lock, entry);
  }
}

void Manager::RunEntry(Lock& lock, const EntryPtr& entry) {
  entry->running = true;
  entry->started = SteadyClock::now();
  entry->job().started = absl::Now();
  entry->job().progress.state = JobState::kFetching;
  entry->job().progress.phase = "reading the source";
  Changed(*entry);
  absl::Status ready = Write(*entry);
  Job job = entry->Snapshot();
  if (ready.ok()) {
    auto spec = table_->ReadSpec(job.id);
    ready = spec.status();
    if (spec.ok()) job.spec = *std::move(spec);
  }
  lock.unlock();
  Notify(job);
  absl::StatusOr<Manifest> result = ready.ok() ? CallWork(entry, job) : ready;
  lock.lock();

  entry->job().progress.elapsed_seconds = entry->Snapshot().progress.elapsed_seconds;
  entry->running = false;
  // Stopped by Shutdown() alone, the job is not over.
  if (absl::IsCancelled(result.status()) && !entry->row.cancel_requested && stopping_) {
    HandBack(*entry);
  } else {
    Finish(*entry, std::move(result));
  }
  Changed(*entry);
  (void)Write(
      *entry);  // if the disk refuses, the next process finds the job unfinished and repeats it
  const Job snapshot = entry->Snapshot();
  lock.unlock();
  Notify(snapshot);
  lock.lock();
}

absl::StatusOr<Manifest> Manager::CallWork(const EntryPtr& entry, const Job& job) {
  Context context(*this, entry);
  try {
    return work_(job, context);
  } catch (const std::bad_alloc&) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "there was not enough memory for the job");
  } catch (const std::exception&) {
    return Refuse(absl::StatusCode::kInternal, reason::kInternal, "",
                  "the job failed unexpectedly");
  }
}

void Manager::Finish(Entry& entry, absl::StatusOr<Manifest> result) {
  Job& job = entry.job();
  job.finished = absl::Now();
  job.progress.eta_seconds.reset();
  if (result.ok()) {
    job.progress.state = JobState::kReady;
    job.progress.phase = "ready";
    job.progress.fraction = 1;
    job.content_key = result->content_key;
    // A model that was there already has linears that this job never reported.
    if (job.linears.empty()) job.linears = result->linears;
    return;
  }
  job.error = result.status();
  const bool cancelled = absl::IsCancelled(job.error);
  job.progress.state = cancelled ? JobState::kCancelled : JobState::kFailed;
  job.progress.phase = cancelled ? "cancelled" : "failed";
}

void Manager::HandBack(Entry& entry) {
  Job& job = entry.job();
  job.progress = {};
  job.progress.phase = "waiting for a worker";
  job.started = absl::InfinitePast();
  job.linears.clear();
  entry.linears_written = 0;
  (void)table_->DeleteLinears(job.id);  // stale rows are also replaced one by one
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobManager>> JobManager::Open(Options options, JobWork work) {
  auto table = JobTable::Open(options.database_path);
  if (!table.ok()) return table.status();
  auto manager = std::make_unique<Manager>(std::move(options), std::move(work), *std::move(table));
  if (auto status = manager->Restore(); !status.ok()) return status;
  manager->StartWorkers();
  return manager;
}

}  // namespace babai
