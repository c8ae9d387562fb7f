// Calibration without data: the model writes the sequences itself. Sampled at temperature 1, its
// own text has the statistics of what it was trained on (LLM-QAT, Liu et al. 2023,
// arXiv:2305.17888, section 2.1).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/jobs/calibration.h"
#include "server/model/checkpoint.h"

namespace babai {

// `count` sequences of `length` tokens. Each begins with BOS, or with a random common token if the
// model has none, and so does what follows an end of text within it. The same seed gives the same
// tokens. `progress` gets the fraction done; `stop` is polled at each step.
absl::StatusOr<std::vector<Sequence>> GenerateCalibration(const Checkpoint& checkpoint,
                                                          int64_t count, int64_t length,
                                                          uint64_t seed, ThreadPool& pool,
                                                          absl::FunctionRef<void(double)> progress,
                                                          const std::function<bool()>& stop);

}  // namespace babai
