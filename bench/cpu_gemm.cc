// How close do the CPU products come to what this processor can do?
//
//   cpu_gemm [threads] [seconds a figure] [avx2 or scalar: use less than the best]
//
// Limits are measured in the same run: read bandwidth before and after the figures that it bounds,
// the integer and the fp32 multiply-add rates of registers alone. Shapes are those of SmolLM2-135M
// at 4 bits, group 64 with zeros, and an 8-bit head: 30 blocks of four stacked products. Prints the
// best (what the code can do), the median and the spread (what the machine made of it).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "bench/cpu_peak.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/packed_int.h"

namespace babai::cpu {
namespace {

double g_seconds = 0.5;
clockid_t g_clock = CLOCK_MONOTONIC;

double Now() {
  timespec t;
  clock_gettime(g_clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Times {
  double best, median, worst;
};

Times Measure(const std::function<void()>& work) {
  work();  // pages and caches
  std::vector<double> seconds;
  const double stop = Now() + g_seconds;
  while (seconds.size() < 5 || Now() < stop) {
    const double start = Now();
    work();
    seconds.push_back(Now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2], seconds.back()};
}

void Print(const char* what, double amount, const char* unit, const Times& t, double limit) {
  std::printf("%-46s best %8.2f median %8.2f worst %8.2f %s", what, amount / t.best,
              amount / t.median, amount / t.worst, unit);
  if (limit > 0) std::printf("  best/limit %3.0f %%", 100 * amount / t.best / limit);
  std::printf("\n");
}

// --- limits

// Two streams, two lines of each at a time; loads of 16 bytes are fast enough with any set.
uint64_t SumLines(const uint8_t* p, int64_t bytes) {
  using Vector [[gnu::vector_size(16)]] = uint64_t;
  const int64_t part = bytes / 32;
  const auto* vectors = reinterpret_cast<const Vector*>(p);
  Vector sums[4] = {};
  for (int64_t i = 0; i + 8 <= part; i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j % 4] ^= vectors[i + j] ^ vectors[part + i + j];
  }
  const Vector all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  return all[0] ^ all[1];
}

double MeasureBandwidth(const AlignedBuffer& buffer, ThreadPool& pool) {
  std::vector<uint64_t> sinks(pool.threads());
  const Times t = Measure([&] {
    pool.RunOnAll([&](int index, int threads) {
      const int64_t part = buffer.size() / threads / 64 * 64;
      sinks[index] += SumLines(buffer.data() + index * part, part);
    });
  });
  if (sinks[0] == 42) std::printf("\n");  // uses the sums
  Print("read bandwidth, 128 MiB", buffer.size() / 1e9, "GB/s", t, 0);
  return buffer.size() / 1e9 / t.best;
}

// --- weights

PackedInt MakePacked(int64_t n, int64_t k, int64_t group, int bits, bool asymmetric) {
  std::mt19937 rng(1);
  PackedInt w;
  w.codes.resize(PackedIntCodeBytes(n, k, bits));
  for (uint8_t& b : w.codes) b = static_cast<uint8_t>(rng());
  w.scales.assign(n * (k / group), FloatToHalf(0.01f));
  if (asymmetric) w.zeros.assign(PackedIntZeroBytes(n, k, group, bits), 0x77);
  w.rows = n, w.cols = k, w.group = group, w.bits = bits;
  return w;
}

PackedIntWeights Make(int64_t n, int64_t k, int64_t group, int bits, bool asymmetric) {
  const PackedInt packed = MakePacked(n, k, group, bits, asymmetric);
  return *PackedIntWeights::Make({packed.view()});
}

struct Shape {
  int64_t n, k;
};
constexpr Shape kBlock[] = {
    {960, 576}, {576, 576}, {3072, 576}, {576, 1536}};  // qkv o gate/up down
constexpr int kBlocks = 30;
constexpr Shape kHead = {49152, 576};

struct Model {
  std::vector<PackedIntWeights> linears;
  PackedIntWeights head;
  int64_t block_bytes = 0, bytes = 0;
  int64_t block_weights = 0;  // multiply-adds a token, without the head
};

Model MakeModel() {
  Model model;
  for (int b = 0; b < kBlocks; ++b) {
    for (const Shape& s : kBlock) {
      model.linears.push_back(Make(s.n, s.k, 64, 4, true));
      model.block_bytes += model.linears.back().bytes();
      model.block_weights += s.n * s.k;
    }
  }
  model.head = Make(kHead.n, kHead.k, 32, 8, false);
  model.bytes = model.block_bytes + model.head.bytes();
  return model;
}

class Runner {
 public:
  explicit Runner(int64_t most_tokens)
      : x_(most_tokens * 1536 * 4),
        y_(std::max(most_tokens * 3072, kHead.n * 8) * 4),
        scratch_(MatmulScratchBytes(most_tokens, 1536)) {
    auto* x = reinterpret_cast<float*>(x_.data());
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < most_tokens * 1536; ++i) x[i] = normal(rng);
  }
  MatmulArgs Args(int64_t m, int64_t n, int64_t k) {
    return {reinterpret_cast<float*>(x_.data()),
            m,
            k,
            nullptr,
            reinterpret_cast<float*>(y_.data()),
            n,
            scratch_.data()};
  }
  template <class W, class Fn>
  void Run(Fn matmul, const W& w, int64_t m, ThreadPool& pool) {
    matmul(w, Args(m, w.rows(), w.cols()), pool);
  }

 private:
  AlignedBuffer x_, y_, scratch_;
};

// --- figures

void Decode(const Model& model, double bandwidth, Runner& runner, ThreadPool& pool) {
  for (int64_t m : {1, 2, 4, 8}) {
    const Times t = Measure([&] {
      for (const PackedIntWeights& w : model.linears) runner.Run(MatmulInt8, w, m, pool);
      runner.Run(MatmulInt8, model.head, m, pool);
    });
    char what[64];
    std::snprintf(what, sizeof what, "decode weights, m %d (%.1f MB, %.2f ms)", static_cast<int>(m),
                  model.bytes / 1e6, t.best * 1e3);
    Print(what, model.bytes / 1e9, "GB/s", t, bandwidth);
  }
}

// Billions of multiply-adds a second of all threads; 0 where there is no loop.
template <class T>
double MeasurePeak(const char* what, T (*loop)(), int macs, ThreadPool& pool) {
  if (loop == nullptr) return 0;
  std::vector<T> sinks(pool.threads());
  const double amount = double{kChains} * kPeakSteps * macs * pool.threads() / 1e9;
  const Times t = Measure([&] { pool.RunOnAll([&](int index, int) { sinks[index] += loop(); }); });
  Print(what, amount, "GMAC/s", t, 0);
  return amount / t.best;
}

void Prefill(const Model& model, double limit, Runner& runner, ThreadPool& pool) {
  for (int64_t m : {16, 64, 512}) {
    const Times t = Measure([&] {
      for (const PackedIntWeights& w : model.linears) runner.Run(MatmulInt8, w, m, pool);
    });
    char what[64];
    std::snprintf(what, sizeof what, "prefill linears, m %d (%.0f tokens/s)", static_cast<int>(m),
                  m / t.best);
    Print(what, m * model.block_weights / 1e9, "GMAC/s", t, limit);
  }
}

void Fp32(const char* name, FloatType type, double bandwidth, double limit, Runner& runner,
          ThreadPool& pool) {
  const int64_t n = 3072, k = 1536;
  std::vector<uint8_t> zeros(n * k * FloatTypeBytes(type));
  std::vector<DenseWeights> copies;  // together more than the caches hold
  for (int i = 0; i < 12; ++i) copies.push_back(*DenseWeights::Make({{zeros.data(), type, n, k}}));
  for (int64_t m : {1, 8, 64, 512}) {
    size_t next = 0;
    const Times t =
        Measure([&] { runner.Run(MatmulDense, copies[next++ % copies.size()], m, pool); });
    char what[64];
    std::snprintf(what, sizeof what, "dense %s 3072x1536, m %d", name, static_cast<int>(m));
    if (m <= 8) Print(what, copies[0].bytes() / 1e9, "GB/s", t, bandwidth);
    if (m > 8) Print(what, m * n * k / 1e9, "GMAC/s", t, limit);
  }
}

void Exact(double limit, Runner& runner, ThreadPool& pool) {
  const PackedIntWeights w = Make(3072, 576, 64, 4, true);
  for (int64_t m : {8, 512}) {
    const Times t = Measure([&] { runner.Run(MatmulExact, w, m, pool); });
    char what[64];
    std::snprintf(what, sizeof what, "exact W4 3072x576, m %d", static_cast<int>(m));
    Print(what, m * w.rows() * w.cols() / 1e9, "GMAC/s", t, limit);
  }
}

void Attention(double limit, ThreadPool& pool) {
  constexpr int kHeads = 9, kContext = 1024;
  const KvShape shape = {3, 64, 16, FloatType::kF16};
  AlignedBuffer keys(kContext / 16 * KvKeyBlockBytes(shape));
  AlignedBuffer values(kContext / 16 * KvValueBlockBytes(shape));
  AlignedBuffer q(kContext * kHeads * 64 * 4), out(kContext * kHeads * 64 * 4);
  AlignedBuffer scratch(AttentionScratchBytes(shape, kContext, pool.threads()));
  std::vector<int32_t> blocks(kContext / 16);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
  const PagedKv kv = {shape, keys.data(), values.data()};
  const auto attend = [&](int64_t start, int64_t rows) {
    const SequenceRows sequence = {blocks.data(), start, rows};
    const AttentionArgs args = {reinterpret_cast<float*>(q.data()),
                                kHeads * 64,
                                reinterpret_cast<float*>(out.data()),
                                kHeads * 64,
                                kHeads,
                                0.125f,
                                0,
                                0,
                                scratch.data(),
                                scratch.size()};
    PagedAttention(kv, {&sequence, 1}, args, pool);
  };
  const double prefill_macs = 2.0 * 64 * kHeads * kContext * (kContext + 1) / 2;
  Print("attention, prefill of 1024, 9 heads of 64", prefill_macs / 1e9, "GMAC/s",
        Measure([&] { attend(0, kContext); }), limit);
  Print("attention, decode at 1024 (cached keys)", (keys.size() + values.size()) / 1e9, "GB/s",
        Measure([&] { attend(kContext - 1, 1); }), 0);
}

void Barriers(ThreadPool& pool) {
  constexpr int kRounds = 1000;
  Print("thread meetings", kRounds / 1e3, "thousand/s", Measure([&] {
          for (int i = 0; i < kRounds; ++i) pool.RunOnAll([](int, int) {});
        }),
        0);
}

int Main(int threads) {
  // One thread is timed by its own processor time, which a busy machine disturbs less.
  if (threads == 1) g_clock = CLOCK_THREAD_CPUTIME_ID;
  ThreadPool pool(threads);
  std::printf("threads %d, %s\n", pool.threads(), IsaName(ActiveIsa()));
  Runner runner(512);
  AlignedBuffer large(128 << 20);
  std::fill_n(large.data(), large.size(), uint8_t{1});  // or all of it is one page of zeros
  const Model model = MakeModel();
  Barriers(pool);
  const double bandwidth = MeasureBandwidth(large, pool);
  Decode(model, bandwidth, runner, pool);
  MeasureBandwidth(large, pool);  // the machine may have changed its mind
  const PeakLoops peaks = LoopsOf(ActiveIsa());
  const double int8 = MeasurePeak("int8 peak", peaks.int8, peaks.int8_macs, pool);
  const double fp32 = MeasurePeak("fp32 peak", peaks.fp32, peaks.fp32_macs, pool);
  Prefill(model, int8, runner, pool);
  Fp32("fp32", FloatType::kF32, bandwidth, fp32, runner, pool);
  Fp32("fp16", FloatType::kF16, bandwidth, fp32, runner, pool);
  Exact(fp32, runner, pool);
  Attention(fp32, pool);
  return 0;
}

}  // namespace
}  // namespace babai::cpu

int main(int argc, char** argv) {
  if (argc > 2) babai::cpu::g_seconds = std::atof(argv[2]);
  if (argc > 3 && std::string_view(argv[3]) == "avx2") babai::cpu::SetIsa(babai::cpu::Isa::kAvx2);
  if (argc > 3 && std::string_view(argv[3]) == "scalar") {
    babai::cpu::SetIsa(babai::cpu::Isa::kScalar);
  }
  return babai::cpu::Main(argc > 1 ? std::atoi(argv[1]) : 0);
}
