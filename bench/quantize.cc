// How fast does the GPU quantize a model of Llama-3-8B's shape?
//
//   quantize [--samples 128] [--length 2048] [--bits 4] [--group 128] [--layers 32]
//            [--symmetric 0] [--recompute 0] [--leave 0]
//
// The recipe "babai". Weights are random normals made on the device, block after block, and tokens
// are random ids into a random embedding: the times are those of a real model, the quality means
// nothing. Reading a checkpoint and writing the packed model are not in it; what the host makes of
// each group (packed matrices with their certificates, in ordinary memory) is. Limits are those of
// an H200: 787 TFLOP/s of 16-bit products (forward, moments' lower triangle), 67 of fp64 (Cholesky)
// and of fp32 (what the sweep passes on). --recompute 1 runs the MLP's inner part again for its
// last product instead of keeping its activations. --leave 25 leaves a quarter of the
// multiprocessors alone, as a job in a server does.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/sm_part.h"
#include "llama3_8b.h"
#include "must.h"
#include "peak_memory.h"
#include "random_calibration.h"
#include "random_weights.h"
#include "server/engine/cuda_calibration.h"
#include "server/quant/cuda_group.h"

namespace babai {
namespace {

constexpr double kHalfFlops = 787e12, kDoubleFlops = 67e12, kFloatFlops = 67e12;
constexpr int kMakingPhase = kCudaPhases;  // of random weights

struct Options {
  int samples = 128, length = 2048, bits = 4, group = 128, layers = 32, leave = 0;
  bool symmetric = false, recompute = false;
};

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const int value = std::atoi(argv[i + 1]);
    if (flag == "--samples") {
      o.samples = value;
    } else if (flag == "--length") {
      o.length = value;
    } else if (flag == "--bits") {
      o.bits = value;
    } else if (flag == "--group") {
      o.group = value;
    } else if (flag == "--layers") {
      o.layers = value;
    } else if (flag == "--leave") {
      o.leave = value;
    } else if (flag == "--symmetric") {
      o.symmetric = value != 0;
    } else if (flag == "--recompute") {
      o.recompute = value != 0;
    } else {
      std::fprintf(stderr, "quantize: unknown %s; see the head of bench/quantize.cc\n",
                   flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

class Bench {
 public:
  explicit Bench(const Options& o) : o_(o), config_(Llama3Shape(o.layers)) {
    recipe_ = Must(PresetRecipe("babai"));
    recipe_.bits = o.bits, recipe_.group_size = o.group, recipe_.symmetric = o.symmetric;
    for (const LinearGroup group : kLinearGroups) {
      shapes_.push_back({OutputsOf(config_, group), InputsOf(config_, group)});
    }
    if (o.leave > 0) part_ = Must(cuda::SmPart::Leaving(o.leave / 100.0));
    stream_ = Must(part_ != nullptr ? part_->MakeStream() : cuda::Stream::Make());
    cublas_ = Must(cuda::Cublas::Make(stream_));
    clock_ = std::make_unique<cuda::PhaseClock>(stream_, kCudaPhases + 1);
    BlockParams params;
    params.attn_norm.weight = params.mlp_norm.weight = std::vector<float>(config_.hidden, 1.0f);
    calibration_ = Must(CudaCalibration::Make(config_, {o.samples, o.length, !o.recompute},
                                              std::vector<BlockParams>(config_.layers, params),
                                              stream_, *cublas_));
    calibration_->OnForward([this] { return clock_->Enter(kForwardPhase); });
    solver_ = Must(
        CudaGroupSolver::Make(shapes_, recipe_, calibration_->dtype(), stream_, *cublas_, *clock_));
    int64_t widest = 0;
    for (const CudaGroupShape& s : shapes_) widest = std::max(widest, s.n() * s.k);
    mlp_ = Must(cuda::Buffer::OnDevice(2 * widest));
    other_ = Must(cuda::Buffer::OnDevice(2 * widest));
    EmbedRandomTokens(config_, o_.samples, o_.length, *calibration_, stream_);
  }

  void Run() {
    using Clock = std::chrono::steady_clock;
    Must(stream_.Synchronize());
    const auto start = Clock::now();
    for (int64_t block = 0; block < config_.layers; ++block) {
      calibration_->BeginBlock(block);
      for (int g = 0; g < 4; ++g) RunGroup(block, g);
    }
    Collect();
    Must(stream_.Synchronize());
    wall_ = std::chrono::duration<double>(Clock::now() - start).count();
    Must(clock_->Settle());
    Print();
  }

 private:
  void RunGroup(int64_t block, int g) {
    const LinearGroup group = kLinearGroups[g];
    const CudaGroupShape& shape = shapes_[g];
    Must(solver_->Begin(shape));
    Must(calibration_->Inputs(group, o_.samples, [&](const void* x, int64_t tokens) {
      return solver_->AddInputs(x, tokens);
    }));
    Must(clock_->Enter(kMakingPhase));
    const float sigma = 1 / std::sqrt(static_cast<float>(shape.k));
    Must(RandomNormals(solver_->stack(), shape.n() * shape.k, sigma, block * 4 + g, stream_.get()));
    Collect();  // the group before, while the device is busy
    Must(solver_->Solve());
    pending_ = true;
    const cuda::Buffer& weights = group == LinearGroup::kGateUp ? mlp_ : other_;
    Must(solver_->Decode(weights.data()));
    Must(calibration_->Advance(group, weights.data()));
    if (g == 3) peak_ = std::max(peak_, UsedGb());
  }

  void Collect() {
    if (!pending_) return;
    pending_ = false;
    for (const QuantizedLinear& linear : Must(solver_->Finish())) {
      worst_ = std::max(worst_, linear.certificate.relative_error);
      packed_bytes_ += linear.packed.bytes();
    }
  }

  static double UsedGb() {
    const cuda::DeviceMemory memory = Must(cuda::GetDeviceMemory());
    return static_cast<double>(memory.total - memory.free) / 1e9;
  }

  void Print() const {
    const double tokens = static_cast<double>(o_.samples) * o_.length;
    double weights = 0, squares = 0, cubes = 0, passed = 0;
    for (const CudaGroupShape& s : shapes_) {
      const double n = static_cast<double>(s.n()), k = static_cast<double>(s.k);
      weights += n * k, squares += k * k, cubes += k * k * k / 3, passed += n * k * k;
    }
    const double layers = static_cast<double>(config_.layers);
    const double attention =
        2 * tokens * o_.length * static_cast<double>(config_.q_rows());  // causal
    const struct {
      const char* name;
      double limit;
    } phases[] = {{"forward", layers * (2 * tokens * weights + attention) / kHalfFlops},
                  {"moments", layers * tokens * squares / kHalfFlops},
                  {"factor", layers * cubes / kDoubleFlops},
                  {"scales", 0},
                  {"sweep", layers * passed / kFloatFlops},
                  {"packing", 0},
                  {"(making weights)", 0}};
    double busy = 0;
    std::printf("%d x %d tokens, babai W%d g%d, %lld blocks, weights random\n", o_.samples,
                o_.length, o_.bits, o_.group, static_cast<long long>(config_.layers));
    for (int p = 0; p <= kCudaPhases; ++p) {
      const double seconds = clock_->totals()[p];
      busy += seconds;
      std::printf("%-18s %8.3f s", phases[p].name, seconds);
      if (phases[p].limit > 0) {
        std::printf("  limit %7.3f s (%2.0f %%)", phases[p].limit, 100 * phases[p].limit / seconds);
      }
      std::printf("\n");
    }
    const double making = clock_->totals()[kMakingPhase];
    std::printf("%-18s %8.3f s\n", "outside", wall_ - busy);
    std::printf("%-18s %8.3f s  (%.3f with making weights)\n", "wall", wall_ - making, wall_);
    std::printf("device memory %.1f GB, host peak %.2f GB, packed %.2f GB, worst error %.4f\n",
                peak_, PeakHostGb(), static_cast<double>(packed_bytes_) / 1e9, worst_);
  }

  const Options o_;
  const ModelConfig config_;
  Recipe recipe_;
  std::vector<CudaGroupShape> shapes_;
  std::unique_ptr<cuda::SmPart> part_;
  cuda::Stream stream_;
  std::unique_ptr<cuda::Cublas> cublas_;
  std::unique_ptr<cuda::PhaseClock> clock_;
  std::unique_ptr<CudaCalibration> calibration_;
  std::unique_ptr<CudaGroupSolver> solver_;
  cuda::Buffer mlp_, other_;  // weights as they will be served
  bool pending_ = false;
  double wall_ = 0, peak_ = 0, worst_ = 0;
  int64_t packed_bytes_ = 0;
};

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  if (const absl::Status available = cuda::CheckDevice(); !available.ok()) {
    std::printf("quantize: skipped, needs a GPU: %s\n", std::string(available.message()).c_str());
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Bench(o).Run();
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
