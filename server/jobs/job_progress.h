// A running job's progress: what it is doing, how far it is, when it will be done.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "server/jobs/job.h"

namespace babai {

// Not thread-safe. Reports go to the context at most every few milliseconds apart from changes of
// phase.
class ProgressReporter {
 public:
  explicit ProgressReporter(JobContext& context);

  void Enter(JobState state, std::string_view phase, double fraction);
  void CalibrationTokens(int64_t tokens) { progress_.calibration_tokens = tokens; }
  // Self-calibration, 0..1.
  void Generated(double part);
  // The survey before the blocks, 0..1; blocks then have less of the bar.
  void Surveyed(double part);
  // `where`: "on the GPU", or empty.
  void BeginBlocks(int64_t blocks, std::string_view where = {});
  void BlockPart(int64_t block, double part);
  void Linear(const LinearReport& linear, absl::Duration took);
  void Warn(std::string warning);
  const std::vector<std::string>& warnings() const { return progress_.warnings; }

 private:
  using Clock = std::chrono::steady_clock;
  std::string BlockPhase(int64_t shown) const;
  static double Seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  void Send();

  JobContext& context_;
  JobProgress progress_;
  const Clock::time_point started_ = Clock::now();
  double blocks_begin_;  // share of the bar at which they do
  std::string where_;
  Clock::time_point phase_started_ = started_, sent_;
};

}  // namespace babai
