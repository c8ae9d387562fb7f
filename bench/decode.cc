// How fast does the GPU's runner serve a model of Llama-3-8B's shape?
//
//   decode [--batch 1,4,16,64] [--context 512] [--prefill 2048,8192] [--chunk 2048] [--bits 4]
//          [--group 128] [--steps 50] [--logits 1]
//
// Weights are random, made on the device: linears and head packed, symmetric. A decode step is
// Runner::Step() as the scheduler calls it, tokens drawn on the device; with --logits 1 the logits
// of every sequence come to the host instead; medians. The limit of a step is the bytes of weights
// and of the keys and values read over 4613 GB/s (H200, measured read), or its multiplications over
// 787 TFLOP/s, whichever takes longer; that of prefill the multiplications alone. "logits" is the
// time that bringing them to the host takes by itself.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "llama3_8b.h"
#include "server/engine/cuda_runner.h"
#include "server/engine/cuda_runner_impl.h"

namespace babai {
namespace {

constexpr double kReadBytesPerMs = 4613e6;  // H200
constexpr double kFlopsPerMs = 787e9;       // H200, bf16 on random data

struct Options {
  std::vector<int> batch{1, 4, 16, 64}, prefill{2048, 8192};
  int context = 512, chunk = 2048, bits = 4, group = 128, steps = 50, logits = 0;
};

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "decode: %s\n", value.status().ToString().c_str());
  std::exit(1);
}
void Must(const absl::Status& status) { Must<int>(status.ok() ? absl::StatusOr<int>(0) : status); }

std::vector<int> ParseList(const char* s) {
  std::vector<int> out;
  for (; s != nullptr; s = std::strchr(s, ',') ? std::strchr(s, ',') + 1 : nullptr) {
    if (*s != '\0') out.push_back(std::atoi(s));
  }
  return out;
}

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const std::vector<int> values = ParseList(argv[i + 1]);
    const int value = values.empty() ? 0 : values[0];
    if (flag == "--batch") {
      o.batch = values;
    } else if (flag == "--prefill") {
      o.prefill = values;
    } else if (flag == "--context") {
      o.context = value;
    } else if (flag == "--chunk") {
      o.chunk = value;
    } else if (flag == "--bits") {
      o.bits = value;
    } else if (flag == "--group") {
      o.group = value;
    } else if (flag == "--steps") {
      o.steps = value;
    } else if (flag == "--logits") {
      o.logits = value;
    } else {
      std::fprintf(stderr, "decode: unknown %s; see the head of bench/decode.cc\n", flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

// Copies `pattern` over the buffer again and again.
void FillWith(const std::vector<uint8_t>& pattern, const cuda::Buffer& buffer) {
  const int64_t size = pattern.size();
  for (int64_t at = 0; at < buffer.bytes(); at += size) {
    const int64_t count = std::min(size, buffer.bytes() - at);
    Must(cuda::FromCuda(
        cudaMemcpy(buffer.data<uint8_t>() + at, pattern.data(), count, cudaMemcpyHostToDevice),
        "random weights"));
  }
}

// Random tiles with scales of 2^-11 to 2^-10: weights of some 0.003.
std::vector<uint8_t> RandomTiles(const cuda::PackedShape& shape) {
  constexpr int kTiles = 4096;
  std::mt19937 rng(1);
  std::vector<uint8_t> tiles(int64_t{kTiles} * shape.tile_bytes());
  for (uint8_t& v : tiles) v = static_cast<uint8_t>(rng());
  for (int i = 0; i < kTiles; ++i) {
    uint8_t* scales = tiles.data() + int64_t{i} * shape.tile_bytes() + shape.code_bytes();
    for (int j = 0; j < shape.groups_per_tile() * cuda::kTileRows; ++j) {
      const uint16_t scale = 0x1000 | (rng() & 0x3ff);
      std::memcpy(scales + 2 * j, &scale, 2);
    }
  }
  return tiles;
}

class Model {
 public:
  explicit Model(const Options& o)
      : o_(o), config_(Llama3Shape()), weights_(std::make_unique<CudaWeights>()) {}

  std::unique_ptr<CudaWeights> Make() {
    weights_->blocks.resize(config_.layers);
    weights_->params = Must(cuda::Buffer::OnDevice(config_.hidden * sizeof(float)));
    const std::vector<float> ones(config_.hidden, 1.0f);
    Must(cuda::FromCuda(cudaMemcpy(weights_->params.data(), ones.data(), weights_->params.bytes(),
                                   cudaMemcpyHostToDevice),
                        "norms"));
    const cuda::NormWeights norm = {weights_->params.data<float>(), nullptr};
    const int64_t qkv_rows = config_.q_rows() + 2 * config_.kv_rows();
    for (CudaBlock& block : weights_->blocks) {
      block.attn_norm = block.mlp_norm = norm;
      block.qkv = RandomLinear(qkv_rows, config_.hidden);
      block.o = RandomLinear(config_.hidden, config_.q_rows());
      block.gate_up =
          RandomLinear(2 * config_.intermediate, config_.hidden, CudaLinear::Order::kInEights);
      block.down = RandomLinear(config_.hidden, config_.intermediate);
    }
    weights_->final_norm = norm;
    weights_->head = RandomLinear(config_.vocab, config_.hidden);
    MakeEmbedding();
    return std::move(weights_);
  }
  const ModelConfig& config() const { return config_; }
  int64_t linear_bytes() const { return linear_bytes_; }
  int64_t block_weights() const { return block_weights_; }

 private:
  CudaLinear RandomLinear(int64_t rows, int64_t cols,
                          CudaLinear::Order order = CudaLinear::Order::kStacked) {
    CudaLinear::Part part;
    part.rows = rows, part.packed = true;
    part.shape = {static_cast<int>(rows), static_cast<int>(cols), o_.bits, o_.group, false};
    part.weights = Must(cuda::Buffer::OnDevice(part.shape.bytes()));
    if (tiles_.empty()) tiles_ = RandomTiles(part.shape);
    FillWith(tiles_, part.weights);
    linear_bytes_ += part.weights.bytes();
    if (rows != config_.vocab) block_weights_ += rows * cols;
    weights_->bytes += part.weights.bytes();
    std::vector<CudaLinear::Part> parts;
    parts.push_back(std::move(part));
    return CudaLinear(std::move(parts), cols, order);
  }
  void MakeEmbedding() {
    std::mt19937 rng(2);
    std::vector<uint8_t> pattern(1 << 24);
    for (size_t i = 0; i < pattern.size(); i += 2) {
      const uint16_t value = 0x2000 | (rng() & 0x8fff);  // fp16, 2^-7 to 2^-3
      std::memcpy(&pattern[i], &value, 2);
    }
    weights_->embedding_of.push_back(
        Must(cuda::Buffer::OnDevice(config_.vocab * config_.hidden * 2)));
    FillWith(pattern, weights_->embedding_of.back());
    weights_->embedding.kind = cuda::EmbeddingTable::Kind::kFp16;
    weights_->embedding.values = weights_->embedding_of.back().data();
  }

  const Options o_;
  const ModelConfig config_;
  std::unique_ptr<CudaWeights> weights_;
  std::vector<uint8_t> tiles_;
  int64_t linear_bytes_ = 0, block_weights_ = 0;
};

double MedianMs(int reps, const std::function<void()>& run) {
  std::vector<double> ms;
  for (int i = 0; i < reps; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
                     .count());
  }
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

// One step: `count` tokens at `start` of each of `sequences` sequences, logits of the last ones.
class Steps {
 public:
  Steps(Runner& runner, bool want_logits)
      : runner_(runner), want_logits_(want_logits), logits_(runner.LogitsBuffer(64)) {}

  void Run(int sequences, int start, int count) {
    const int blocks = (start + count + 15) / 16;
    std::vector<int32_t> tokens, positions, begin = {0}, context, tables, rows;
    for (int s = 0; s < sequences; ++s) {
      for (int i = 0; i < count; ++i) {
        tokens.push_back((s * 7919 + (start + i) * 104729) % 128000);
        positions.push_back(start + i);
      }
      begin.push_back(static_cast<int32_t>(tokens.size()));
      context.push_back(start + count);
      for (int b = 0; b < blocks; ++b) tables.push_back(b * sequences + s);
      rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    std::vector<TokenChoice> choices;
    if (!want_logits_) choices.assign(sequences, {true, 1.0f, 0.5});
    Must(runner_.Step(
        {tokens, positions, begin, context, tables, blocks, rows, absl::MakeSpan(choices)},
        logits_));
  }

 private:
  Runner& runner_;
  const bool want_logits_;
  float* const logits_;  // pinned, as the scheduler has them
};

double LogitsMs(int64_t bytes) {
  const cuda::Buffer device = Must(cuda::Buffer::OnDevice(bytes));
  const cuda::Buffer pinned = Must(cuda::Buffer::Pinned(bytes));
  return MedianMs(20,
                  [&] { cudaMemcpy(pinned.data(), device.data(), bytes, cudaMemcpyDeviceToHost); });
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  if (const absl::Status available = CudaAvailable(); !available.ok()) {
    std::printf("decode: skipped, needs a GPU: %s\n", std::string(available.message()).c_str());
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Model model(o);
  RunnerOptions options;
  options.kv_blocks = 4096;
  options.max_step_tokens = std::max(o.chunk, 64);
  options.max_sequences = 64;
  std::unique_ptr<CudaWeights> weights = model.Make();
  auto runner = Must(CudaRunner::Create(model.config(), std::move(weights), options));
  Steps steps(*runner, o.logits != 0);
  const double kv_per_token = static_cast<double>(runner->kv_bytes()) / (4096.0 * 16);
  std::printf("W%d g%d, head too: %.2f GB of weights read a step\n", o.bits, o.group,
              model.linear_bytes() / 1e9);
  for (const int batch : o.batch) {
    for (int i = 0; i < 5; ++i) steps.Run(batch, o.context - 1, 1);
    const double ms = MedianMs(o.steps, [&] { steps.Run(batch, o.context - 1, 1); });
    const double all = static_cast<double>(model.block_weights()) + 128256.0 * 4096;
    const double limit =
        std::max((model.linear_bytes() + batch * o.context * kv_per_token) / kReadBytesPerMs,
                 2 * batch * all / kFlopsPerMs);
    const double logits = LogitsMs(int64_t{batch} * model.config().vocab * 4);
    std::printf("batch %3d  %7.3f ms  %7.0f tokens/s  limit %6.3f ms (%2.0f %%)  logits %.3f ms\n",
                batch, ms, batch * 1e3 / ms, limit, 100 * limit / ms, logits);
  }
  for (const int tokens : o.prefill) {
    if (tokens < 1) continue;
    const auto prefill = [&] {
      for (int at = 0; at < tokens; at += o.chunk) {
        steps.Run(1, at, std::min(o.chunk, tokens - at));
      }
    };
    prefill();
    const double ms = MedianMs(5, prefill);
    const double attention = 2.0 * tokens * tokens * model.config().q_rows() *
                             static_cast<double>(model.config().layers);
    const double limit = (2.0 * tokens * model.block_weights() + attention) / kFlopsPerMs;
    std::printf("prefill %5d  %8.2f ms  %7.0f tokens/s  limit %7.2f ms (%2.0f %%)\n", tokens, ms,
                tokens * 1e3 / ms, limit, 100 * limit / ms);
  }
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
