// The quantize job itself: fetch -> open -> calibration tokens -> block by block: moments, factor,
// solve, pack -> evaluate -> commit. One forward pass in all gives true-sequential semantics:
// inside a block the groups [q,k,v] [o] [gate,up] [down] see inputs made by everything quantized
// before them.
#pragma once

#include <filesystem>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "server/jobs/job.h"
#include "server/store/catalog.h"

namespace babai {

struct QuantizeEnvironment {
  Catalog* catalog = nullptr;                      // not owned
  std::vector<std::filesystem::path> model_roots;  // for the model and calibration URIs
  int threads = 0;                                 // 0 = all
  bool use_device = false;  // quantize on the GPU where the recipe allows (device_quantizer.h)
  bool beside_answers = false;  // of that GPU, leave a part to what else runs there
};

// What can be refused before a job is queued: name, URI, recipe, calibration fields, a model that
// is not there or can not be read, a group size that does not divide a linear of this model.
absl::Status CheckQuantize(const QuantizeSpec& spec, const QuantizeEnvironment& env);

absl::StatusOr<Manifest> RunQuantizeJob(const Job& job, JobContext& context,
                                        const QuantizeEnvironment& env);

}  // namespace babai
