// Quantizes a model block by block on the GPU, true-sequentially like BlockQuantizer: sequences,
// moments, factors and codes stay there; the host reads the next block's weights and packs and
// writes the last group's meanwhile. For recipes of uniform grids and the sweep; everything else,
// and builds without the CUDA compiler, are BlockQuantizer's.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/block.h"
#include "server/jobs/calibration.h"
#include "server/model/checkpoint.h"
#include "server/quant/recipe.h"
#include "server/store/packed_model.h"

namespace babai {

// What the quantizer works with. Nothing is owned, and everything must outlive it.
struct DeviceQuantizerInputs {
  const Checkpoint& checkpoint;
  const Recipe& recipe;
  PackedModelWriter& writer;
  ThreadPool& pool;
  const std::function<bool()>& stop;
  // All of one length; the first `training` give moments, the rest are also taken through the
  // original model.
  const std::vector<Sequence>& sequences;
  int64_t training = 0;
  // A quarter of the device is left to what else this process runs there.
  bool beside_answers = false;
};

// Whether the recipe is one for the device.
bool DeviceQuantizes(const Recipe& recipe);

class DeviceQuantizer {
 public:
  virtual ~DeviceQuantizer() = default;

  // Why nothing is left to answers although it was asked for; empty: it is, or was not.
  virtual const std::string& warning() const = 0;

  // Embedding matrices [vocab, hidden] as they will be served, and of the original model.
  virtual absl::Status Embed(absl::Span<const float> served, const ModelParams& served_params,
                             absl::Span<const float> original, const ModelParams& params) = 0;
  // As BlockQuantizer::Run(). Errors name the block; Unavailable DEVICE_LOST: the device failed.
  virtual absl::Status Run(absl::FunctionRef<void(const LinearReport&, absl::Duration)> on_linear,
                           absl::FunctionRef<void(int64_t, double)> on_group) = 0;
  // The last hidden states of the sequences after the first `training`, [.., length, hidden], of
  // the quantized model or of the original.
  enum class Model { kQuantized, kOriginal };
  virtual absl::StatusOr<std::vector<float>> Hidden(Model model) const = 0;
};

// ResourceExhausted OUT_OF_MEMORY before anything is allocated, with the numbers: the device has
// not enough free. FailedPrecondition DEVICE_UNAVAILABLE: there is none, or cuBLAS or cuSOLVER is
// missing. InvalidArgument UNSUPPORTED_SHAPE: the kernels can not run this model. Requires
// DeviceQuantizes().
absl::StatusOr<std::unique_ptr<DeviceQuantizer>> MakeDeviceQuantizer(
    const DeviceQuantizerInputs& inputs);

}  // namespace babai
