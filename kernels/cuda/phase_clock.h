// Where a stream's time goes: each point of it belongs to the phase that was entered last.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/device.h"

namespace babai::cuda {

class PhaseClock {
 public:
  // Phases are 0 .. count - 1.
  PhaseClock(const Stream& stream, int count) : stream_(stream), totals_(count, 0.0) {}
  PhaseClock(const PhaseClock&) = delete;
  PhaseClock& operator=(const PhaseClock&) = delete;
  ~PhaseClock();

  absl::Status Enter(int phase);
  // Takes up the marks so far, for which it waits. Once in a while: marks are kept until then.
  absl::Status Settle();
  // Seconds of each phase, as of the last Settle().
  const std::vector<double>& totals() const { return totals_; }

 private:
  struct Mark {
    cudaEvent_t event = nullptr;
    int phase = 0;
  };

  const Stream& stream_;
  std::vector<double> totals_;
  std::vector<Mark> marks_;
  std::vector<cudaEvent_t> spare_;
};

}  // namespace babai::cuda
