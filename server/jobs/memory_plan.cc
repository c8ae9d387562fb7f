#include "server/jobs/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "server/jobs/forward.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kFloat = sizeof(float), kDouble = sizeof(double);

int64_t StreamBytes(const ModelConfig& config, int64_t tokens) {
  const int64_t activations = tokens * config.intermediate * kFloat;
  const int64_t inner = activations <= CalibrationStream::kMaxInnerBytes
                            ? std::max(config.q_rows(), config.intermediate)
                            : config.q_rows();
  return tokens * (config.hidden + inner) * kFloat;
}

int64_t BlockWeights(const ModelConfig& config) {
  const int64_t mlp = config.intermediate * (config.gated_mlp ? 3 : 2);
  return config.hidden * (2 * config.q_rows() + 2 * config.kv_rows() + mlp);
}

// Two heads, each as read and in the kernels' layout.
int64_t EmbeddingBytes(const ModelConfig& config, int64_t held_out) {
  return (held_out > 0 ? 4 : 2) * config.vocab * config.hidden * kFloat;
}

// What the kernel could give without swapping; "MemAvailable:   12345 kB".
int64_t AvailableBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(file, unit);
  }
  return std::numeric_limits<int64_t>::max();  // not told: nothing is refused
}

}  // namespace

MemoryDemand PlanQuantizeMemory(const ModelConfig& config, const Recipe& recipe, int64_t training,
                                int64_t held_out, int64_t length) {
  MemoryDemand demand;
  demand.streams =
      StreamBytes(config, (training + held_out) * length) +
      StreamBytes(config, (held_out + (recipe.needs_original() ? training : 0)) * length);
  // This block as read and as decoded, the next one as read, and one group in the kernels' layout.
  demand.block = 4 * BlockWeights(config) * kFloat;
  if (recipe.needs_moments()) {
    const int64_t widest = std::max({config.hidden, config.q_rows(), config.intermediate});
    // Sums, moments, factor and its workspace; the drift's sums, moments and workspace.
    demand.block += (recipe.needs_original() ? 10 : 4) * widest * widest * kDouble;
  }
  demand.embeddings = EmbeddingBytes(config, held_out);
  return demand;
}

MemoryDemand PlanDeviceQuantizeMemory(const ModelConfig& config, int64_t held_out, int64_t length) {
  MemoryDemand demand;
  // The last hidden states of both models, for the evaluation.
  demand.streams = 2 * StreamBytes(config, held_out * length);
  // The next block as read; this one's codes, pinned and on their way to the file.
  demand.block = 2 * BlockWeights(config) * kFloat;
  demand.embeddings = EmbeddingBytes(config, held_out);
  return demand;
}

absl::Status CheckMemory(const MemoryDemand& demand) {
  const int64_t available = AvailableBytes();
  if (demand.peak() <= available) return absl::OkStatus();
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                "the job needs " + std::to_string(demand.peak()) + " bytes of memory (" +
                    std::to_string(demand.streams) + " for calibration) and " +
                    std::to_string(available) +
                    " are available; lower calibration.samples or length, or unload models");
}

}  // namespace babai
