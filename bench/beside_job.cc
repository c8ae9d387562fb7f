// How long do steps take while a quantize job runs on the same GPU?
//
//   beside_job [--model small|8b] [--streams 4,1] [--seconds 4] [--context 300] [--leave 25]
//              [--samples 512] [--length 1024] [--work all|forward|moments|solve|copy]
//
// Runner::Step() of a model of random weights (SmolLM2-135M's shape, or Llama-3-8B's), one step
// after another as the scheduler calls it: alone, then beside a thread that does all the time what
// a job of that shape does on the device for each block (recipe "babai"), or only one kind of it.
// --leave: the percentage of the multiprocessors that the job leaves to the steps. What the host
// does for a job, and for answers beyond their steps, is not in it: bench/serve_latency has that.
#include <atomic>
#include <chrono>
#include <cmath>
#include <string>
#include <thread>

#include "kernels/cuda/sm_part.h"
#include "llama3_8b.h"
#include "random_calibration.h"
#include "random_model.h"
#include "random_weights.h"
#include "server/engine/cuda_calibration.h"
#include "server/engine/cuda_loader.h"
#include "server/engine/cuda_runner.h"
#include "server/quant/cuda_group.h"

namespace babai {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "small", work = "all", streams = "4,1";
  double seconds = 4;
  int leave = 25, samples = 512, length = 1024, context = 300;
};

Options Parse(int argc, char** argv) {
  Options o;
  const std::pair<const char*, std::string*> texts[] = {
      {"--model", &o.model}, {"--work", &o.work}, {"--streams", &o.streams}};
  const std::pair<const char*, int*> numbers[] = {{"--leave", &o.leave},
                                                  {"--samples", &o.samples},
                                                  {"--length", &o.length},
                                                  {"--context", &o.context}};
  for (int i = 1; i + 1 < argc; i += 2) {
    bool known = argv[i] == std::string("--seconds");
    if (known) o.seconds = std::atof(argv[i + 1]);
    for (const auto& [flag, to] : texts) {
      if (argv[i] == std::string(flag)) *to = argv[i + 1], known = true;
    }
    for (const auto& [flag, to] : numbers) {
      if (argv[i] == std::string(flag)) *to = std::atoi(argv[i + 1]), known = true;
    }
    if (known) continue;
    std::fprintf(stderr, "beside_job: unknown %s; see the head of bench/beside_job.cc\n", argv[i]);
    std::exit(2);
  }
  return o;
}

ModelConfig SmolLm2Shape() {
  ModelConfig c = Llama3Shape(30);
  c.vocab = 49152, c.hidden = 576, c.intermediate = 1536;
  c.heads = 9, c.kv_heads = 3, c.head_dim = 64;
  c.ropes[0].inv_freq.resize(c.head_dim / 2);
  c.attention_scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
  return c;
}

// Quantizes a block of random weights again and again, from Start() to Stop().
class Job {
 public:
  Job(const ModelConfig& config, const Options& o) : o_(o), config_(config) {
    for (const LinearGroup group : kLinearGroups) {
      shapes_.push_back({OutputsOf(config_, group), InputsOf(config_, group)});
    }
    if (o.leave > 0) part_ = Must(cuda::SmPart::Leaving(o.leave / 100.0));
    stream_ = Must(part_ != nullptr ? part_->MakeStream() : cuda::Stream::Make());
    cublas_ = Must(cuda::Cublas::Make(stream_));
    clock_ = std::make_unique<cuda::PhaseClock>(stream_, kCudaPhases);
    loader_ = Must(CudaLoader::Make());
    BlockParams params;
    params.attn_norm.weight = params.mlp_norm.weight = std::vector<float>(config_.hidden, 1.0f);
    calibration_ = Must(
        CudaCalibration::Make(config_, {o.samples, o.length, true}, {params}, stream_, *cublas_));
    calibration_->OnForward([this] { return clock_->Enter(kForwardPhase); });
    solver_ = Must(CudaGroupSolver::Make(shapes_, Must(PresetRecipe("babai")),
                                         calibration_->dtype(), stream_, *cublas_, *clock_));
    int64_t block = 0, widest = 0;
    for (const CudaGroupShape& s : shapes_) {
      block += s.n() * s.k, widest = std::max(widest, s.n() * s.k);
    }
    host_.assign(block, 0.01f);
    staged_ = Must(cuda::Buffer::OnDevice(4 * block));
    for (cuda::Buffer& weights : weights_) weights = Must(cuda::Buffer::OnDevice(2 * widest));
    EmbedRandomTokens(config_, o_.samples, o_.length, *calibration_, stream_);
    for (int g = 0; g < 4; ++g) RunGroup(g, "all");
  }
  ~Job() { Stop(); }

  void Start() {
    stop_ = false, blocks_ = 0;
    threads_.emplace_back([this] {
      while (!stop_) RunBlock();
    });
    if (o_.work != "all" && o_.work != "copy") return;
    threads_.emplace_back([this] {
      while (!stop_) CopyBlock();
    });
  }
  void Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  int blocks() const { return blocks_; }
  int sms() const { return part_ != nullptr ? part_->sms() : 0; }

 private:
  void RunBlock() {
    if (o_.work == "copy") return std::this_thread::yield();
    calibration_->BeginBlock(0);
    for (int g = 0; g < 4; ++g) RunGroup(g, o_.work);
    ++blocks_;
  }

  // As a job's thread that reads ahead, once for each block.
  void CopyBlock() {
    if (o_.work != "copy" && copied_ == blocks_) return std::this_thread::yield();
    copied_ = blocks_;
    Must(loader_->Copy(host_.data(), staged_.bytes(), staged_.data()));
    Must(loader_->Finish());
  }

  void RunGroup(int g, const std::string& work) {
    const LinearGroup group = kLinearGroups[g];
    const cuda::Buffer& weights = weights_[group == LinearGroup::kGateUp];
    const bool all = work == "all";
    if (all || work == "moments" || work == "solve") {
      constexpr int kFew = 8;
      Must(solver_->Begin(shapes_[g]));
      Must(
          calibration_->Inputs(group, work == "solve" ? kFew : o_.samples,
                               [&](const void* x, int64_t n) { return solver_->AddInputs(x, n); }));
    }
    if (all || work == "solve") {
      const int64_t k = shapes_[g].k, n = shapes_[g].n();
      Must(RandomNormals(solver_->stack(), n * k, 1 / std::sqrt(static_cast<float>(k)), g,
                         stream_.get()));
      Must(solver_->Solve());
      Must(solver_->Decode(weights.data()));
      (void)Must(solver_->Finish());
    }
    if (all || work == "forward" || group == LinearGroup::kGateUp) {
      Must(calibration_->Advance(group, weights.data()));
    }
    Must(stream_.Synchronize());
    Must(clock_->Settle());
  }

  const Options o_;
  const ModelConfig config_;
  std::vector<CudaGroupShape> shapes_;
  std::unique_ptr<cuda::SmPart> part_;
  cuda::Stream stream_;
  std::unique_ptr<cuda::Cublas> cublas_;
  std::unique_ptr<cuda::PhaseClock> clock_;
  std::unique_ptr<CudaLoader> loader_;
  std::unique_ptr<CudaCalibration> calibration_;
  std::unique_ptr<CudaGroupSolver> solver_;
  cuda::Buffer staged_, weights_[2];  // as read; as served, the MLP's first part and the others
  std::vector<float> host_;
  std::atomic<bool> stop_{false};
  std::atomic<int> blocks_{0};
  int copied_ = 0;
  std::vector<std::thread> threads_;
};

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// The p50 and the p99, after printing more.
std::pair<double, double> Measure(const char* what, Steps& steps, int streams, const Options& o) {
  std::vector<double> ms;
  for (int i = 0; i < 20; ++i) steps.Run(streams, o.context, 1);
  for (const auto start = Clock::now(); Seconds(start) < o.seconds;) {
    const auto begin = Clock::now();
    steps.Run(streams, o.context, 1);
    ms.push_back(1e3 * Seconds(begin));
  }
  std::sort(ms.begin(), ms.end());
  const auto at = [&](double share) {
    return ms[std::min(ms.size() - 1, static_cast<size_t>(share * static_cast<double>(ms.size())))];
  };
  std::printf("%2d streams %-7s p50 %.3f  p90 %.3f  p99 %.3f  p99.9 %.3f  most %.3f ms", streams,
              what, at(0.5), at(0.9), at(0.99), at(0.999), ms.back());
  return {at(0.5), at(0.99)};
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  if (const absl::Status available = CudaAvailable(); !available.ok()) {
    std::printf("beside_job: skipped, needs a GPU: %s\n", std::string(available.message()).c_str());
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const bool large = o.model == "8b";
  const ModelConfig config = large ? Llama3Shape() : SmolLm2Shape();
  RunnerOptions options;
  options.kv_blocks = 4096;
  options.max_step_tokens = options.max_sequences = 64;
  RandomModel model(config, {.bits = 4, .group = large ? 128 : 64});
  auto runner = Must(CudaRunner::Create(config, model.Make(), options));
  Steps steps(*runner, /*want_logits=*/false);
  Job job(config, o);
  const auto blocks_a_second = [&](Clock::time_point start) {
    return job.blocks() / Seconds(start);
  };
  std::printf("%s, job of %d x %d, %s, on %d multiprocessors (0: all)\n", o.model.c_str(),
              o.samples, o.length, o.work.c_str(), job.sms());
  auto start = Clock::now();
  job.Start();
  std::this_thread::sleep_for(std::chrono::duration<double>(o.seconds));
  std::printf("the job alone: %.2f blocks/s\n", blocks_a_second(start));
  job.Stop();
  for (const int streams : ParseList(o.streams.c_str())) {
    const auto idle = Measure("alone", steps, streams, o);
    std::printf("\n");
    start = Clock::now();
    job.Start();
    const auto beside = Measure("beside", steps, streams, o);
    std::printf("  p50 x %.2f, p99 x %.2f; the job %.2f blocks/s\n", beside.first / idle.first,
                beside.second / idle.second, blocks_a_second(start));
    job.Stop();
  }
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
