// How long does a whole quantize job take, from the checkpoint on disk to the committed model?
//
//   quantize_job SOURCE [--device cuda|cpu] [--preset babai] [--bits 4] [--group 0] [--samples 128]
//                [--length 512] [--held_out 8] [--threads 0] [--out /tmp/babai-bench]
//
// Runs the job as the server does, without the server, on random token ids, and prints how long it
// was in each phase (JobProgress::phase; blocks together) and what the manifest says. Random ids
// are far from text: perplexities are large and say only that two devices agree. The model made is
// deleted.
#include "server/jobs/quantize_job.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "peak_memory.h"
#include "server/model/checkpoint.h"
#include "server/store/catalog.h"

namespace babai {
namespace {

struct Options {
  std::string source, device = "cuda", preset = "babai", out = "/tmp/babai-bench";
  int bits = 0, group = 0, samples = 128, length = 512, held_out = 8, threads = 0;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "quantize_job: %s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

Options Parse(int argc, char** argv) {
  Options o;
  if (argc < 2) {
    std::fprintf(stderr, "quantize_job: see the head of bench/quantize_job.cc\n");
    std::exit(2);
  }
  o.source = argv[1];
  const std::pair<const char*, std::string*> texts[] = {
      {"--device", &o.device}, {"--preset", &o.preset}, {"--out", &o.out}};
  const std::pair<const char*, int*> numbers[] = {
      {"--bits", &o.bits},     {"--group", &o.group},       {"--samples", &o.samples},
      {"--length", &o.length}, {"--held_out", &o.held_out}, {"--threads", &o.threads}};
  for (int i = 2; i + 1 < argc; i += 2) {
    bool known = false;
    for (const auto& [flag, to] : texts) {
      if (argv[i] == std::string(flag)) *to = argv[i + 1], known = true;
    }
    for (const auto& [flag, to] : numbers) {
      if (argv[i] == std::string(flag)) *to = std::atoi(argv[i + 1]), known = true;
    }
    if (known) continue;
    std::fprintf(stderr, "quantize_job: unknown %s\n", argv[i]);
    std::exit(2);
  }
  return o;
}

// Adds up the time between reports by phase, all blocks as one.
class Stopwatch : public JobContext {
 public:
  void Report(const JobProgress& p) override {
    const std::string name = NameOf(p.phase);
    if (phases_.empty() || phases_.back().first != name) {
      Close();
      phases_.emplace_back(name, 0);
    }
    worst_ = p.worst_relative_error;
    warnings_ = p.warnings;
  }
  void ReportLinear(const LinearReport&, absl::Duration) override {}
  bool cancelled() const override { return false; }

  void Print() {
    Close();
    for (const auto& [name, seconds] : phases_) std::printf("%9.3f s  %s\n", seconds, name.c_str());
    for (const std::string& warning : warnings_) std::printf("warning: %s\n", warning.c_str());
    std::printf("worst relative error %.4f\n", worst_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static std::string NameOf(const std::string& phase) {
    if (phase.rfind("quantizing block", 0) != 0) return phase;
    const size_t where = phase.find(" on ");
    return "quantizing the blocks" + (where == std::string::npos ? "" : phase.substr(where));
  }
  void Close() {
    const auto now = Clock::now();
    if (!phases_.empty()) {
      phases_.back().second += std::chrono::duration<double>(now - last_).count();
    }
    last_ = now;
  }

  std::vector<std::pair<std::string, double>> phases_;
  Clock::time_point last_;
  double worst_ = 0;
  std::vector<std::string> warnings_;
};

QuantizeSpec SpecOf(const Options& o, int64_t vocab) {
  QuantizeSpec spec;
  spec.source_uri = std::filesystem::canonical(o.source).string();
  spec.name = "bench";
  spec.recipe = OrExit(PresetRecipe(o.preset));
  if (o.bits > 0) spec.recipe.bits = o.bits;
  spec.recipe.group_size = o.group;
  spec.calibration.source = CalibrationSpec::Source::kTokenIds;
  spec.calibration.samples = o.samples;
  spec.calibration.length = o.length;
  spec.calibration.held_out = o.held_out;
  std::mt19937 rng(1);
  for (int s = 0; s < o.samples + o.held_out; ++s) {
    auto& ids = spec.calibration.token_ids.emplace_back(o.length);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % vocab);
  }
  return spec;
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  const auto catalog = OrExit(Catalog::Open(o.out));
  QuantizeEnvironment env;
  env.catalog = catalog.get();
  env.model_roots = {std::filesystem::canonical(o.source)};
  env.threads = o.threads;
  env.use_device = o.device == "cuda";
  Job job;
  job.id = "bench";
  {
    const auto checkpoint = OrExit(OpenCheckpoint(o.source));
    job.spec = SpecOf(o, checkpoint->config().vocab);
  }
  Check(CheckQuantize(job.spec, env));
  Stopwatch context;
  const auto start = std::chrono::steady_clock::now();
  const Manifest manifest = OrExit(RunQuantizeJob(job, context, env));
  const double wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  context.Print();
  std::printf("%9.3f s  in all; host peak %.2f GB, packed %.3f GB, %.3f bits a weight\n", wall,
              PeakHostGb(), static_cast<double>(manifest.packed_bytes) / 1e9,
              manifest.bits_per_weight);
  const Evaluation& e = manifest.evaluation;
  std::printf("perplexity %.4f, of the original %.4f, KL %.5f, top-1 %.4f over %lld tokens\n",
              e.perplexity, e.reference_perplexity, e.mean_kl, e.top1_agreement,
              static_cast<long long>(e.tokens));
  Check(catalog->Delete("bench"));
  return 0;
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) { return babai::Main(argc, argv); }
