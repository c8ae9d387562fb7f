// Looking at a whole model before it is quantized: how the loss of each linear falls with its bits,
// and how much a loss there costs the model's output. What recipe.allocation "hulls" shares bits
// out by.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "server/jobs/calibration.h"
#include "server/model/checkpoint.h"
#include "server/quant/recipe.h"

namespace babai {

struct SurveyInputs {
  const Checkpoint& checkpoint;
  const Recipe& recipe;
  const std::vector<Sequence>& sequences;  // calibration; the first few are used
  ThreadPool& pool;
  const std::function<bool()>& stop;
};

// The bits of each linear, by name: recipe.bits on the uniform grid, recipe.target_bits on integer
// grids. `progress` gets the fraction done.
//
// Loss: each linear's proxy loss at several sizes, quantized on a sample of its rows with the
// original model's moments. Sensitivity: mean KL of the model's predictions on a few tokens when
// noise of known output energy is added to one linear, over that energy.
absl::StatusOr<std::map<std::string, double>> AllocateModelBits(
    const SurveyInputs& inputs, double target_bits, absl::FunctionRef<void(double)> progress);

}  // namespace babai
