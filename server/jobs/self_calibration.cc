#include "server/jobs/self_calibration.h"

#include <algorithm>

#include "server/engine/runner.h"
#include "server/engine/sampling.h"

namespace babai {
namespace {

// Decoding reads all weights at each step, whatever the batch: a wide batch costs little more than
// one sequence. Beyond this, and beyond this much of KV cache, it only costs memory.
constexpr int64_t kMaxBatch = 32;
constexpr int64_t kMaxKvBytes = int64_t{1} << 30;
constexpr int64_t kBlockTokens = 16;

// Ids of byte-pair vocabularies grow with rarity: these are the bytes and the most frequent merges.
constexpr int64_t kCommonTokens = 4096;

// Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Where one token both ends and begins texts (GPT-2), the model simply goes on.
bool EndsText(const ModelConfig& config, int32_t token) {
  if (token == config.bos) return false;
  return std::find(config.eos.begin(), config.eos.end(), token) != config.eos.end();
}

int32_t StartToken(const ModelConfig& config, uint64_t random) {
  if (config.bos >= 0) return config.bos;
  const auto common = static_cast<uint64_t>(std::min(config.vocab, kCommonTokens));
  return static_cast<int32_t>(random % common);
}

int64_t BlocksFor(int64_t length) { return (length + kBlockTokens - 1) / kBlockTokens; }

int64_t BatchFor(const ModelConfig& config, int64_t count, int64_t length) {
  const int64_t token_bytes = config.layers * config.kv_rows() * 2 * 2;  // keys and values, fp16
  const int64_t sequence_bytes = BlocksFor(length) * kBlockTokens * token_bytes;
  return std::clamp<int64_t>(kMaxKvBytes / std::max<int64_t>(1, sequence_bytes), 1,
                             std::min(count, kMaxBatch));
}

// Some sequences that grow side by side, one token a step.
class Batch {
 public:
  Batch(const ModelConfig& config, int64_t first, int64_t size, int64_t length, uint64_t seed)
      : config_(config), length_(length), logits_(size * config.vocab) {
    for (int64_t s = 0; s < size; ++s) {
      SamplingParams params;
      params.seed = SplitMix64(seed ^ SplitMix64(first + s));
      seeds_.push_back(params.seed);
      samplers_.emplace_back(params, config.vocab);
      sequences_.push_back({StartToken(config, params.seed)});
      for (int64_t b = 0; b < BlocksFor(length); ++b) {
        tables_.push_back(static_cast<int32_t>(s * BlocksFor(length) + b));
      }
      begins_.push_back(static_cast<int32_t>(s));
      rows_.push_back(static_cast<int32_t>(s));
    }
    begins_.push_back(static_cast<int32_t>(size));
  }

  absl::Status Step(Runner& runner) {
    const size_t size = sequences_.size();
    const auto position = static_cast<int32_t>(sequences_[0].size() - 1);
    std::vector<int32_t> tokens;
    for (const Sequence& sequence : sequences_) tokens.push_back(sequence.back());
    const std::vector<int32_t> positions(size, position), contexts(size, position + 1);
    StepBatch batch;
    batch.tokens = tokens;
    batch.positions = positions;
    batch.sequence_begin = begins_;
    batch.context_length = contexts;
    batch.block_tables = tables_;
    batch.max_blocks = static_cast<int32_t>(BlocksFor(length_));
    batch.logits_rows = rows_;
    if (auto status = runner.Step(batch, logits_.data()); !status.ok()) return status;
    for (size_t s = 0; s < size; ++s) sequences_[s].push_back(Next(s, position + 1));
    return absl::OkStatus();
  }

  bool done() const { return static_cast<int64_t>(sequences_[0].size()) == length_; }
  std::vector<Sequence>& sequences() { return sequences_; }

 private:
  int32_t Next(size_t s, int64_t position) {
    if (EndsText(config_, sequences_[s].back())) {
      return StartToken(config_, SplitMix64(seeds_[s] + position));
    }
    const auto logits = absl::MakeSpan(logits_).subspan(s * config_.vocab, config_.vocab);
    return samplers_[s].Pick(logits, position);
  }

  const ModelConfig& config_;
  const int64_t length_;
  std::vector<float> logits_;
  std::vector<Sampler> samplers_;
  std::vector<uint64_t> seeds_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> tables_, begins_, rows_;
};

}  // namespace

absl::StatusOr<std::vector<Sequence>> GenerateCalibration(const Checkpoint& checkpoint,
                                                          int64_t count, int64_t length,
                                                          uint64_t seed, ThreadPool& pool,
                                                          absl::FunctionRef<void(double)> progress,
                                                          const std::function<bool()>& stop) {
  const ModelConfig& config = checkpoint.config();
  const int64_t width = BatchFor(config, count, length);
  RunnerOptions options;
  options.kv_blocks = width * BlocksFor(length);
  options.block_size = kBlockTokens;
  options.max_step_tokens = width;
  options.max_sequences = width;
  auto runner = MakeCpuRunner(checkpoint, options, pool);
  if (!runner.ok()) return runner.status();

  std::vector<Sequence> all;
  for (int64_t first = 0; first < count; first += width) {
    const int64_t size = std::min(width, count - first);
    Batch batch(config, first, size, length, seed);
    while (!batch.done()) {
      if (stop()) return absl::CancelledError("stopped");
      if (auto status = batch.Step(**runner); !status.ok()) return status;
      const double within = static_cast<double>(batch.sequences()[0].size()) / length;
      progress((first + size * within) / count);
    }
    for (Sequence& sequence : batch.sequences()) all.push_back(std::move(sequence));
  }
  return all;
}

}  // namespace babai
