#include "server/jobs/job_progress.h"

#include <algorithm>
#include <utility>

namespace babai {
namespace {

// Shares of the whole bar. Generating calibration data, where it is done, is counted within its
// own.
constexpr double kBlocksBegin = 0.1, kBlocksEnd = 0.95;
constexpr double kCalibrationBegin = 0.02;

constexpr double kSurveyEnd = 0.35;

constexpr auto kMinInterval = std::chrono::milliseconds(20);

}  // namespace

ProgressReporter::ProgressReporter(JobContext& context)
    : context_(context), blocks_begin_(kBlocksBegin) {}

void ProgressReporter::Send() {
  sent_ = Clock::now();
  progress_.elapsed_seconds = Seconds(sent_ - started_);
  context_.Report(progress_);
}

void ProgressReporter::Enter(JobState state, std::string_view phase, double fraction) {
  progress_.state = state;
  progress_.phase = std::string(phase);
  progress_.fraction = std::max(progress_.fraction, fraction);
  progress_.eta_seconds.reset();
  phase_started_ = Clock::now();
  Send();
}

void ProgressReporter::Generated(double part) {
  progress_.fraction = kCalibrationBegin + part * (kBlocksBegin - kCalibrationBegin);
  if (Clock::now() - sent_ >= kMinInterval) Send();
}

void ProgressReporter::Surveyed(double part) {
  blocks_begin_ = kSurveyEnd;
  progress_.fraction = kBlocksBegin + part * (kSurveyEnd - kBlocksBegin);
  if (Clock::now() - sent_ >= kMinInterval) Send();
}

std::string ProgressReporter::BlockPhase(int64_t shown) const {
  return "quantizing block " + std::to_string(shown) + " of " + std::to_string(progress_.blocks) +
         where_;
}

void ProgressReporter::BeginBlocks(int64_t blocks, std::string_view where) {
  progress_.blocks = blocks;
  if (!where.empty()) where_ = " " + std::string(where);
  Enter(JobState::kQuantizing, BlockPhase(1), blocks_begin_);
}

void ProgressReporter::BlockPart(int64_t block, double part) {
  const double done = (block + part) / progress_.blocks;
  progress_.block = part < 1 ? block : block + 1;
  progress_.fraction = blocks_begin_ + done * (kBlocksEnd - blocks_begin_);
  progress_.phase = BlockPhase(std::min(progress_.block + 1, progress_.blocks));
  // Blocks are alike, and what follows them costs about as much as their share of the bar says.
  const double after = (1 - kBlocksEnd) / (kBlocksEnd - blocks_begin_);
  const double spent = Seconds(Clock::now() - phase_started_);
  progress_.eta_seconds = spent / done * (1 - done + after);
  if (part == 1 || Clock::now() - sent_ >= kMinInterval) Send();
}

void ProgressReporter::Linear(const LinearReport& linear, absl::Duration took) {
  if (linear.relative_error > progress_.worst_relative_error) {
    progress_.worst_relative_error = linear.relative_error;
    progress_.worst_linear = linear.name;
  }
  if (linear.damping_doublings > 0) {
    Warn(linear.name + ": the moments were nearly singular; damping was doubled " +
         std::to_string(linear.damping_doublings) + " times");
  }
  context_.ReportLinear(linear, took);
}

void ProgressReporter::Warn(std::string warning) {
  progress_.warnings.push_back(std::move(warning));
}

}  // namespace babai
