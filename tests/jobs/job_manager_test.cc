// The job table with a fake for the work: what survives which kind of end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "server/jobs/job.h"
#include "server/jobs/sqlite.h"
#include "server/reason/reason.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

QuantizeSpec Spec(const std::string& name, const std::string& request_id = "") {
  QuantizeSpec spec;
  spec.request_id = request_id;
  spec.source_uri = "file:///models/x";
  spec.name = name;
  spec.calibration.source = CalibrationSpec::Source::kTexts;
  spec.calibration.texts = {"calibration of " + name, "na\xc3\xafve \"text\"\n"};
  spec.calibration.token_ids = {{1, 2}, {}};
  spec.calibration.seed = ~uint64_t{0};
  return spec;
}

// Work that waits until it is released, or until its job is cancelled.
class Gate {
 public:
  JobWork Work() {
    return [this](const Job& job, JobContext& context) -> absl::StatusOr<Manifest> {
      ++started_;
      JobProgress progress;
      progress.state = JobState::kQuantizing;
      progress.fraction = 0.5;
      progress.phase = "half way";
      context.Report(progress);
      context.ReportLinear({.name = "blocks.0.q.weight", .relative_error = 0.25}, absl::Seconds(1));
      while (!open_ && !context.cancelled()) absl::SleepFor(absl::Milliseconds(1));
      if (context.cancelled()) return absl::CancelledError("stopped");
      Manifest manifest;
      manifest.content_key = "key of " + job.spec.calibration.texts.at(0);
      return manifest;
    };
  }
  void Open() { open_ = true; }
  int started() const { return started_; }

 private:
  std::atomic<bool> open_ = false;
  std::atomic<int> started_ = 0;
};

class JobManagerTest : public testing::Test {
 protected:
  std::unique_ptr<JobManager> Open(JobWork work, int workers = 1) {
    JobManager::Options options;
    options.database_path = database();
    options.workers = workers;
    auto manager = JobManager::Open(options, std::move(work));
    EXPECT_TRUE(manager.ok()) << manager.status();
    return manager.ok() ? *std::move(manager) : nullptr;
  }
  std::string database() const { return (temp_.path() / "jobs.sqlite").string(); }

  static Job WaitFor(const JobManager& manager, const std::string& id,
                     const std::function<bool(const Job&)>& reached) {
    Job job = *manager.Get(id);
    const absl::Time limit = absl::Now() + absl::Seconds(60);  // only a hung test gets there
    while (!reached(job) && absl::Now() < limit) {
      job = *manager.WaitForChange(id, job.revision, limit, nullptr);
    }
    EXPECT_TRUE(reached(job)) << JobStateName(job.progress.state);
    return job;
  }
  static Job WaitForEnd(const JobManager& manager, const std::string& id) {
    return WaitFor(manager, id, [](const Job& job) { return IsTerminal(job.progress.state); });
  }
  static Job WaitForState(const JobManager& manager, const std::string& id, JobState state) {
    return WaitFor(manager, id, [&](const Job& job) { return job.progress.state == state; });
  }

  // A process that dies: the table says that the job is in the middle, and nobody works on it.
  void MarkRunning(const std::string& id) {
    auto db = *Database::Open(database());
    auto update = *db->Prepare("UPDATE jobs SET state = 'QUANTIZING' WHERE id = ?");
    ASSERT_TRUE(update.Bind(id).Run().ok());
  }

  TempDir temp_;
  Gate gate_;
};

TEST_F(JobManagerTest, RunsAJobToItsEnd) {
  gate_.Open();
  std::string id;
  {
    auto manager = Open(gate_.Work());
    const auto job = manager->Submit(Spec("m"));
    ASSERT_TRUE(job.ok()) << job.status();
    id = job->id;
    EXPECT_THAT(id, testing::MatchesRegex("job-[0-9a-f]{16}"));
    EXPECT_EQ(WaitForEnd(*manager, id).progress.state, JobState::kReady);
  }
  // Everything but the calibration data is there after a restart, too.
  auto manager = Open(gate_.Work());
  const Job job = *manager->Get(id);
  EXPECT_EQ(job.progress.state, JobState::kReady);
  EXPECT_EQ(job.progress.fraction, 1);
  EXPECT_EQ(job.content_key, "key of calibration of m");
  EXPECT_EQ(job.spec.name, "m");
  EXPECT_EQ(job.spec.calibration.seed, ~uint64_t{0});
  EXPECT_TRUE(job.spec.calibration.texts.empty());
  ASSERT_EQ(job.linears.size(), 1u);
  EXPECT_EQ(job.linears[0].relative_error, 0.25);
  EXPECT_GE(job.finished, job.started);
  EXPECT_GE(job.started, job.created);
  EXPECT_EQ(job.restarts, 0);
  EXPECT_EQ(gate_.started(), 1);
}

TEST_F(JobManagerTest, KeepsTheErrorOfAFailedJob) {
  const JobWork failing = [](const Job&, JobContext&) -> absl::StatusOr<Manifest> {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kCalibrationTooSmall, "calibration",
                  "too little");
  };
  std::string id;
  absl::Status error;
  {
    auto manager = Open(failing);
    id = manager->Submit(Spec("m"))->id;
    error = WaitForEnd(*manager, id).error;
    EXPECT_EQ(ReasonOf(error), reason::kCalibrationTooSmall);
  }
  const Job job = *Open(failing)->Get(id);
  EXPECT_EQ(job.progress.state, JobState::kFailed);
  EXPECT_EQ(job.error, error);
}

TEST_F(JobManagerTest, AnExceptionFailsTheJobAlone) {
  auto manager = Open([](const Job& job, JobContext&) -> absl::StatusOr<Manifest> {
    if (job.spec.name == "memory") throw std::bad_alloc();
    throw std::runtime_error("secret");
  });
  const Job other = WaitForEnd(*manager, manager->Submit(Spec("other"))->id);
  EXPECT_EQ(other.error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(other.error.message()), testing::Not(testing::HasSubstr("secret")));
  const Job memory = WaitForEnd(*manager, manager->Submit(Spec("memory"))->id);
  EXPECT_EQ(ReasonOf(memory.error), reason::kOutOfMemory);
}

TEST_F(JobManagerTest, RequestIdMakesARetrySafe) {
  auto manager = Open(gate_.Work());
  const std::string id = manager->Submit(Spec("m", "once"))->id;
  EXPECT_EQ(manager->Submit(Spec("m", "once"))->id, id);
  EXPECT_EQ(ReasonOf(manager->Submit(Spec("other", "once")).status()), reason::kRequestIdReused);
  QuantizeSpec other_text = Spec("m", "once");
  other_text.calibration.texts[0] += ".";
  EXPECT_EQ(manager->Submit(other_text).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(manager->Submit(Spec("m"))->id, id);  // without an id each call is a job

  manager.reset();
  manager = Open(gate_.Work());
  EXPECT_EQ(manager->Submit(Spec("m", "once"))->id, id);
}

TEST_F(JobManagerTest, ConcurrentRetriesMakeOneJob) {
  gate_.Open();
  auto manager = Open(gate_.Work(), /*workers=*/3);
  std::mutex mutex;
  std::set<std::string> ids;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) {
        const auto job = manager->Submit(Spec("m", "r" + std::to_string(i)));
        ASSERT_TRUE(job.ok());
        const std::lock_guard lock(mutex);
        ids.insert(job->id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ids.size(), 10u);
  for (const std::string& id : ids) WaitForEnd(*manager, id);
  EXPECT_EQ(gate_.started(), 10);
}

TEST_F(JobManagerTest, CancelsQueuedAndRunningJobs) {
  auto manager = Open(gate_.Work());
  const std::string running = manager->Submit(Spec("running"))->id;
  const std::string queued = manager->Submit(Spec("queued"))->id;
  WaitForState(*manager, running, JobState::kQuantizing);
  ASSERT_TRUE(manager->Cancel(queued).ok());
  EXPECT_EQ(manager->Get(queued)->progress.state, JobState::kCancelled);
  EXPECT_EQ(ReasonOf(manager->Get(queued)->error), reason::kCancelled);
  ASSERT_TRUE(manager->Cancel(running).ok());
  ASSERT_TRUE(manager->Cancel(running).ok());
  EXPECT_EQ(WaitForEnd(*manager, running).progress.state, JobState::kCancelled);
  ASSERT_TRUE(manager->Cancel(running).ok());
  EXPECT_EQ(ReasonOf(manager->Cancel("job-none")), reason::kJobNotFound);
  EXPECT_EQ(gate_.started(), 1);
}

TEST_F(JobManagerTest, ShutdownHandsARunningJobToTheNextProcess) {
  std::string id;
  for (int i = 0; i < 5; ++i) {  // an orderly stop is no death, however often it comes
    auto manager = Open(gate_.Work());
    if (id.empty()) id = manager->Submit(Spec("m"))->id;
    const Job job = WaitForState(*manager, id, JobState::kQuantizing);
    EXPECT_EQ(job.restarts, 0);
    manager->Shutdown();
    manager->Shutdown();
    EXPECT_EQ(manager->Get(id)->progress.state, JobState::kQueued);
    EXPECT_EQ(manager->Submit(Spec("late")).status().code(), absl::StatusCode::kUnavailable);
  }
  gate_.Open();
  auto manager = Open(gate_.Work());
  const Job job = WaitForEnd(*manager, id);
  EXPECT_EQ(job.progress.state, JobState::kReady);
  EXPECT_EQ(job.content_key, "key of calibration of m");  // the data came back from the table
  EXPECT_EQ(job.linears.size(), 1u);
}

TEST_F(JobManagerTest, AJobThatKillsItsProcessThreeTimesIsPoisoned) {
  std::string id;
  for (int death = 0; death < 3; ++death) {
    auto manager = Open(gate_.Work());
    if (id.empty()) id = manager->Submit(Spec("m"))->id;
    const Job job = WaitForState(*manager, id, JobState::kQuantizing);
    EXPECT_EQ(job.restarts, death);
    manager.reset();
    MarkRunning(id);
  }
  auto manager = Open(gate_.Work());
  const Job job = *manager->Get(id);
  EXPECT_EQ(job.progress.state, JobState::kFailed);
  EXPECT_EQ(job.restarts, 3);
  EXPECT_EQ(gate_.started(), 3);
}

TEST_F(JobManagerTest, RevisionsGrowAcrossRestarts) {
  auto manager = Open(gate_.Work());
  const std::string id = manager->Submit(Spec("m"))->id;
  const int64_t seen = WaitForState(*manager, id, JobState::kQuantizing).revision;
  manager.reset();
  manager = Open(gate_.Work());
  EXPECT_GT(manager->Get(id)->revision, seen);
}

TEST_F(JobManagerTest, ListsNewestFirstInPages) {
  auto manager = Open(gate_.Work());
  std::vector<std::string> submitted;
  for (int i = 0; i < 5; ++i)
    submitted.push_back(manager->Submit(Spec("m" + std::to_string(i)))->id);
  std::vector<std::string> listed;
  std::string token;
  int pages = 0;
  do {
    const auto page = manager->List(2, token, &token);
    ASSERT_TRUE(page.ok());
    for (const Job& job : *page) listed.push_back(job.id);
    ++pages;
  } while (!token.empty());
  EXPECT_EQ(pages, 3);
  std::reverse(listed.begin(), listed.end());
  EXPECT_EQ(listed, submitted);
  for (const char* bad : {"x", "-1", "1x", "99999999999999999999"}) {
    EXPECT_FALSE(manager->List(2, bad, &token).ok()) << bad;
  }
  EXPECT_FALSE(manager->List(0, "", &token).ok());
}

TEST_F(JobManagerTest, DeletesOnlyWhatHasEnded) {
  auto manager = Open(gate_.Work());
  const std::string id = manager->Submit(Spec("m", "r"))->id;
  EXPECT_EQ(manager->Delete(id).code(), absl::StatusCode::kFailedPrecondition);
  gate_.Open();
  WaitForEnd(*manager, id);
  ASSERT_TRUE(manager->Delete(id).ok());
  EXPECT_EQ(ReasonOf(manager->Get(id).status()), reason::kJobNotFound);
  EXPECT_EQ(ReasonOf(manager->Delete(id)), reason::kJobNotFound);
  EXPECT_NE(manager->Submit(Spec("m", "r"))->id, id);
}

TEST_F(JobManagerTest, WaitingEndsByChangeDeadlineOrStop) {
  auto manager = Open(gate_.Work());
  const std::string id = manager->Submit(Spec("m"))->id;
  const Job job = WaitForState(*manager, id, JobState::kQuantizing);
  EXPECT_EQ(manager->WaitForChange(id, job.revision, absl::Now(), nullptr)->revision, job.revision);
  EXPECT_EQ(manager->WaitForChange(id, job.revision, absl::InfiniteFuture(), [] { return true; })
                ->revision,
            job.revision);
  std::thread opener([&] { gate_.Open(); });
  EXPECT_GT(manager->WaitForChange(id, job.revision, absl::InfiniteFuture(), nullptr)->revision,
            job.revision);
  opener.join();
  EXPECT_FALSE(manager->WaitForChange("job-none", 0, absl::InfiniteFuture(), nullptr).ok());
}

TEST_F(JobManagerTest, TellsObserversWithoutHoldingLocks) {
  JobManager::Options options;
  options.database_path = database();
  JobManager* self = nullptr;
  std::mutex mutex;
  std::vector<JobState> states;
  std::atomic<int> linears = 0;
  options.on_change = [&](const Job& job) {
    if (self != nullptr) (void)self->Get(job.id);  // would hang if a lock were held
    const std::lock_guard lock(mutex);
    if (states.empty() || states.back() != job.progress.state) states.push_back(job.progress.state);
  };
  options.on_linear = [&](const LinearReport&, absl::Duration) { ++linears; };
  auto manager = *JobManager::Open(options, gate_.Work());
  self = manager.get();
  const std::string id = manager->Submit(Spec("m"))->id;
  WaitForState(*manager, id, JobState::kQuantizing);
  gate_.Open();
  WaitForEnd(*manager, id);
  manager->Shutdown();
  EXPECT_EQ(linears, 1);
  EXPECT_THAT(states,
              testing::IsSupersetOf({JobState::kQueued, JobState::kQuantizing, JobState::kReady}));
}

TEST_F(JobManagerTest, RefusesATableThatIsNotOne) {
  WriteText(database(), std::string(4096, 'x'));
  JobManager::Options options;
  options.database_path = database();
  EXPECT_EQ(JobManager::Open(options, gate_.Work()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(JobManagerTest, RefusesATableOfANewerRelease) {
  Open(gate_.Work()).reset();
  ASSERT_TRUE((*Database::Open(database()))->Execute("PRAGMA user_version = 99").ok());
  JobManager::Options options;
  options.database_path = database();
  EXPECT_EQ(ReasonOf(JobManager::Open(options, gate_.Work()).status()), reason::kSchemaTooNew);
}

TEST_F(JobManagerTest, AFullDiskRefusesTheJobAndKeepsTheRest) {
  gate_.Open();
  auto manager = Open(gate_.Work());
  const std::string kept = manager->Submit(Spec("kept"))->id;
  WaitForEnd(*manager, kept);
  manager.reset();
  // The writer's limit comes from its own connection, so the file is filled to SQLite's page limit.
  auto db = *Database::Open(database());
  ASSERT_TRUE(db->Execute("PRAGMA max_page_count = 1").ok());
  auto insert = *db->Prepare("INSERT INTO linears VALUES ('x', 0, ?)");
  const absl::Status full = insert.Bind(std::string(1 << 20, 'x')).Run();
  EXPECT_EQ(ReasonOf(full), reason::kOutOfDisk);
  EXPECT_EQ(Open(gate_.Work())->Get(kept)->progress.state, JobState::kReady);
}

}  // namespace
}  // namespace babai
