#include "server/jobs/job.h"

namespace babai {

std::string_view JobStateName(JobState state) {
  switch (state) {
    case JobState::kQueued:
      return "QUEUED";
    case JobState::kFetching:
      return "FETCHING";
    case JobState::kCalibrating:
      return "CALIBRATING";
    case JobState::kQuantizing:
      return "QUANTIZING";
    case JobState::kEvaluating:
      return "EVALUATING";
    case JobState::kReady:
      return "READY";
    case JobState::kCancelled:
      return "CANCELLED";
    case JobState::kFailed:
      return "FAILED";
  }
  return "FAILED";
}

bool IsTerminal(JobState state) {
  return state == JobState::kReady || state == JobState::kCancelled || state == JobState::kFailed;
}

}  // namespace babai
