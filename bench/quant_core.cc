// How fast are the parts of layer-wise quantization, next to this host's own fp32 GEMM?
//
//   quant_core [threads]
//
// For each shape (n outputs, k inputs) prints the median and the spread of a few runs, and the rate
// as a fraction of the limit: LibTorch's product of fp32 matrices of the same size, timed between
// the runs. Operations are counted as a product without symmetry would need them (moments 2 t k^2),
// or as they are done (factor k^3 / 3 in fp64, sweep 2 n k^2 for the loss at the start and the
// sweep).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "server/quant/layer.h"
#include "server/quant/linalg.h"
#include "server/quant/scale_fit.h"
#include "server/quant/solver.h"

namespace babai {
namespace {

struct Shape {
  int64_t n, k;
  int runs;
};

class Timings {
 public:
  template <typename Work>
  void Run(Work&& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    ms_.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count());
  }
  double Median() {
    std::sort(ms_.begin(), ms_.end());
    return ms_[ms_.size() / 2];
  }
  double Spread() { return (ms_.back() - ms_.front()) / Median(); }

 private:
  std::vector<double> ms_;
};

double Gflops(double operations, double ms) { return operations / ms * 1e-6; }

void Print(const char* what, Timings& t, double operations, double limit_gflops) {
  const double rate = Gflops(operations, t.Median());
  std::printf("  %-22s %9.2f ms  spread %3.0f %%", what, t.Median(), 100 * t.Spread());
  if (operations > 0)
    std::printf("  %7.1f GFLOP/s = %4.0f %% of the GEMM", rate, 100 * rate / limit_gflops);
  std::printf("\n");
}

std::vector<float> Random(int64_t count, uint64_t seed) {
  std::mt19937 rng(static_cast<uint32_t>(seed));
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> out(count);
  for (float& x : out) x = uniform(rng);
  return out;
}

template <typename T>
T OrExit(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "%s\n", std::string(value.status().message()).c_str());
  std::exit(1);
}

void Measure(const Shape& shape, ThreadPool& pool) {
  const auto [n, k, runs] = shape;
  const int64_t tokens = 2048;
  const std::vector<float> x = Random(tokens * k, 1), xt = Random(k * tokens, 2),
                           w = Random(n * k, 3);
  std::vector<float> product(k * k);
  Moments moments(k, pool);
  Timings gemm, add, factor_act, factor_pivot, absmax, search, pack, sweep, whole;
  Factor factor;
  UniformGrid grid;
  const Recipe recipe = OrExit(PresetRecipe("babai"));
  const int64_t group = OrExit(GroupFor(recipe, k));
  for (int i = 0; i < runs; ++i) {
    gemm.Run([&] { (void)linalg::Multiply(xt.data(), x.data(), product.data(), k, k, tokens); });
    add.Run([&] { (void)moments.Add(x.data(), tokens); });
    const std::vector<double> h = moments.Hessian();
    factor_act.Run([&] { factor = OrExit(FactorHessian(h, Order::kActivation, 0.01)); });
    if (k < 4096) factor_pivot.Run([&] { (void)OrExit(FactorHessian(h, Order::kMinPivot, 0.01)); });
    absmax.Run([&] {
      grid = OrExit(FitScales(w, n, k, {4, false, group, ScaleFit::kAbsMax, {}}, pool, nullptr));
    });
    search.Run([&] {
      grid = OrExit(FitScales(w, n, k, {4, false, group, ScaleFit::kMse, {}}, pool, nullptr));
    });
    const auto packed = OrExit(PackedFactor<float>::Make(factor, pool));
    pack.Run([&] { (void)OrExit(PackedFactor<float>::Make(factor, pool)); });
    sweep.Run([&] { (void)OrExit(Solve<float>(SolveOptions{}, w, grid, &packed, pool, nullptr)); });
    LinearProblem problem;
    problem.w = w;
    problem.n = n;
    problem.k = k;
    problem.factor = &factor;
    whole.Run([&] { (void)OrExit(QuantizeLinear(problem, recipe, pool, nullptr)); });
  }
  const double size = static_cast<double>(k) * k,
               limit = Gflops(2.0 * tokens * size, gemm.Median());
  std::printf("n %lld, k %lld, group %lld\n", (long long)n, (long long)k, (long long)group);
  Print("limit: GEMM k k 2048", gemm, 2.0 * tokens * size, limit);
  Print("moments, 2048 tokens", add, 2.0 * tokens * size, limit);
  Print("factor, activation", factor_act, size * k / 3, limit);
  if (k < 4096) Print("factor, min-pivot", factor_pivot, 0, limit);
  Print("scales, absmax", absmax, 0, limit);
  Print("scales, searched", search, 0, limit);
  Print("factor for the sweep", pack, 0, limit);
  Print("sweep and losses", sweep, 2.0 * n * size, limit);
  Print("QuantizeLinear", whole, 0, limit);
}

}  // namespace
}  // namespace babai

int main(int argc, char** argv) {
  babai::ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  std::printf("%d threads\n", pool.threads());
  for (const babai::Shape& shape :
       {babai::Shape{576, 576, 9}, {1536, 576, 9}, {576, 1536, 5}, {4096, 4096, 1}}) {
    babai::Measure(shape, pool);
  }
}
