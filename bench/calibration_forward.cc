// How close do the calibration forward pass and the second moments come to this host's fp32 GEMM?
//
//   calibration_forward MODEL [threads] [sequences] [length] [blocks]
//
// Runs random tokens through the first blocks of a real checkpoint (a Hugging Face folder or GGUF
// file), as a quantization job does: the inputs of each group of linears into its second moment,
// then the group's products. Operations are those needed: 2 n k a token for a linear, k^2 for the
// lower triangle of a moment, half of the square for causal attention. The limit is the faster of
// LibTorch's product of fp32 matrices and ours, of the sizes of the model's down projection, timed
// before and after.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/engine/block.h"
#include "server/jobs/forward.h"
#include "server/model/checkpoint.h"
#include "server/quant/linalg.h"
#include "server/quant/moments.h"

namespace babai {
namespace {

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

// Seconds that `work` takes.
template <typename Work>
double Timed(Work&& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Part {
  double seconds = 0, operations = 0;
  double rate() const { return operations / seconds * 1e-9; }
};

void Print(const char* what, const Part& part, double limit) {
  std::printf("  %-24s %8.2f s  %7.1f GFLOP/s = %3.0f %% of the GEMM\n", what, part.seconds,
              part.rate(), 100 * part.rate() / limit);
}

std::vector<float> Random(int64_t count) {
  std::mt19937 rng(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> out(count);
  for (float& x : out) x = uniform(rng);
  return out;
}

// GFLOP/s of the faster of the two products [4096, k] x [k, n].
double GemmRate(const ModelConfig& config, ThreadPool& pool) {
  constexpr int64_t kTokens = 4096;
  const int64_t k = config.intermediate, n = config.hidden;
  const std::vector<float> x = Random(kTokens * k), w = Random(n * k);
  std::vector<float> y(kTokens * n);
  StackedWeights ours(k);
  ours.Add(w);
  const double operations = 2.0 * kTokens * n * k;
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double library = Timed(
        [&] { Check(linalg::MultiplyTransposed(x.data(), w.data(), y.data(), kTokens, n, k)); });
    const double own = Timed([&] { Check(ours.Multiply(x.data(), kTokens, y.data(), pool)); });
    best = std::max(best, operations / std::min(library, own) * 1e-9);
  }
  return best;
}

class Forward {
 public:
  Forward(const Checkpoint& checkpoint, CalibrationStream& stream, ThreadPool& pool)
      : checkpoint_(checkpoint), config_(checkpoint.config()), stream_(stream), pool_(pool) {}

  void RunBlock(int64_t block) {
    const BlockParams params = OrExit(LoadBlockParams(config_, block, SourceOf(checkpoint_)));
    stream_.BeginBlock(block, &params);
    for (const Group group : kGroups) {
      auto weights = std::make_shared<StackedWeights>(InputsOf(config_, group));
      for (const std::string& linear : LinearsOf(config_, group))
        weights->Add(OrExit(checkpoint_.Read(BlockTensor(block, linear + ".weight"))));
      RunGroup(group, std::move(weights));
    }
  }
  const Part& products() const { return products_; }
  const Part& moments() const { return moments_; }

 private:
  void RunGroup(Group group, std::shared_ptr<StackedWeights> weights) {
    const double tokens = static_cast<double>(stream_.sequences() * stream_.length());
    const double k = static_cast<double>(InputsOf(config_, group));
    Moments moments(InputsOf(config_, group), pool_);
    moments_.seconds += Timed([&] {
      Check(stream_.Inputs(group, stream_.sequences(),
                           [&](const float* x, int64_t count) { return moments.Add(x, count); }));
    });
    moments_.operations += tokens * k * k;
    products_.operations += 2 * tokens * k * static_cast<double>(weights->outputs());
    if (group == Group::kQkv) {
      products_.operations += 2 * tokens * static_cast<double>(stream_.length() * config_.q_rows());
    }
    products_.seconds += Timed([&] { Check(stream_.Advance(group, std::move(weights))); });
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  CalibrationStream& stream_;
  ThreadPool& pool_;
  Part products_, moments_;
};

std::vector<Sequence> RandomTokens(int64_t sequences, int64_t length, int64_t vocab) {
  std::mt19937 rng(2);
  std::vector<Sequence> out(sequences, Sequence(length));
  for (Sequence& sequence : out) {
    for (int32_t& token : sequence) token = static_cast<int32_t>(rng() % vocab);
  }
  return out;
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "calibration_forward MODEL [threads] [sequences] [length] [blocks]\n");
    return 2;
  }
  const auto number = [&](int i, int64_t otherwise) -> int64_t {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  ThreadPool pool(static_cast<int>(number(2, 0)));
  const auto checkpoint = OrExit(OpenCheckpoint(argv[1]));
  const ModelConfig& config = checkpoint->config();
  const int64_t sequences = number(3, 32), length = number(4, 1024);
  CalibrationStream stream(config, RandomTokens(sequences, length, config.vocab), pool,
                           [] { return false; });
  stream.Embed(OrExit(checkpoint->Read("embed.weight")),
               OrExit(LoadModelParams(config, SourceOf(*checkpoint))));
  double limit = GemmRate(config, pool);
  Forward forward(*checkpoint, stream, pool);
  const int64_t blocks = std::min(config.layers, number(5, config.layers));
  for (int64_t block = 0; block < blocks; ++block) forward.RunBlock(block);
  limit = std::max(limit, GemmRate(config, pool));
  std::printf("%d threads, %lld x %lld tokens, %lld blocks; limit: GEMM %.1f GFLOP/s\n",
              pool.threads(), static_cast<long long>(sequences), static_cast<long long>(length),
              static_cast<long long>(blocks), limit);
  Print("forward", forward.products(), limit);
  Print("moments", forward.moments(), limit);
  Print("both",
        {forward.products().seconds + forward.moments().seconds,
         forward.products().operations + forward.moments().operations},
        limit);
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
