#include "kernels/cuda/phase_clock.h"

namespace babai::cuda {

PhaseClock::~PhaseClock() {
  for (const Mark& mark : marks_) cudaEventDestroy(mark.event);
  for (const cudaEvent_t event : spare_) cudaEventDestroy(event);
}

absl::Status PhaseClock::Enter(int phase) {
  Mark mark = {nullptr, phase};
  if (!spare_.empty()) {
    mark.event = spare_.back();
    spare_.pop_back();
  } else if (const cudaError_t error = cudaEventCreate(&mark.event); error != cudaSuccess) {
    return FromCuda(error, "an event");
  }
  marks_.push_back(mark);
  return FromCuda(cudaEventRecord(mark.event, stream_.get()), "an event");
}

// The last mark stays: its phase goes on.
absl::Status PhaseClock::Settle() {
  if (marks_.size() < 2) return absl::OkStatus();
  const cudaError_t waited = cudaEventSynchronize(marks_.back().event);
  if (waited != cudaSuccess) return FromCuda(waited, "waiting for the device");
  for (size_t i = 0; i + 1 < marks_.size(); ++i) {
    float ms = 0;
    const cudaError_t error = cudaEventElapsedTime(&ms, marks_[i].event, marks_[i + 1].event);
    if (error != cudaSuccess) return FromCuda(error, "an event");
    totals_[marks_[i].phase] += ms / 1e3;
    spare_.push_back(marks_[i].event);
  }
  marks_.erase(marks_.begin(), marks_.end() - 1);
  return absl::OkStatus();
}

}  // namespace babai::cuda
