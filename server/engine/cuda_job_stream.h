// The stream of a job on the device that also answers: what it runs leaves them a quarter of the
// multiprocessors (docs/perf/serving_beside_jobs.md), so that a step's kernels, which are short and
// many, need not wait for blocks of a job's.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"

namespace babai {

// FailedPrecondition: the driver sets no multiprocessors aside. What a part of them takes of the
// driver is taken once, and stays with the process.
absl::StatusOr<cuda::Stream> MakeStreamBesideAnswers();

}  // namespace babai
