// Host memory that a quantize job takes at its peak, known before it starts.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "server/model/config.h"
#include "server/quant/recipe.h"

namespace babai {

struct MemoryDemand {
  int64_t streams = 0;     // hidden states and inner activations of all sequences
  int64_t block = 0;       // a block's weights in fp32, the next one's, moments and factor
  int64_t embeddings = 0;  // embedding and head in fp32, original and as served
  // Blocks and embeddings are not held together.
  int64_t peak() const { return streams + (block > embeddings ? block : embeddings); }
};

// `training` and `held_out` sequences of `length` tokens; none of either for a job without them.
MemoryDemand PlanQuantizeMemory(const ModelConfig& config, const Recipe& recipe, int64_t training,
                                int64_t held_out, int64_t length);

// The same for a job whose blocks are quantized on the GPU, whose memory is planned by itself.
MemoryDemand PlanDeviceQuantizeMemory(const ModelConfig& config, int64_t held_out, int64_t length);

// ResourceExhausted OUT_OF_MEMORY, with the numbers: the system has less than `demand` to give.
absl::Status CheckMemory(const MemoryDemand& demand);

}  // namespace babai
