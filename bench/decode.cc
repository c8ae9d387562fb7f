// How fast does the GPU's runner serve a model of Llama-3-8B's shape?
//
//   decode [--batch 1,4,16,64] [--context 512] [--prefill 2048,8192] [--chunk 2048] [--bits 4]
//          [--group 128] [--tables 1] [--sparse 5] [--rotate 128] [--steps 50] [--logits 1]
//
// Weights are random, made on the device: linears and head packed, symmetric. --tables 1: linears
// of 4-bit codes and a table a row; --sparse N: N of 1000 weights beside them as sparse values;
// --rotate N: inputs rotated in blocks of N. A decode step is
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
#include <string>
#include <utility>
#include <vector>

#include "llama3_8b.h"
#include "random_model.h"
#include "server/engine/cuda_runner.h"

namespace babai {
namespace {

constexpr double kReadBytesPerMs = 4613e6;  // H200
constexpr double kFlopsPerMs = 787e9;       // H200, bf16 on random data

struct Options {
  std::vector<int> batch{1, 4, 16, 64}, prefill{2048, 8192};
  int context = 512, chunk = 2048, steps = 50, logits = 0;
  RandomFormat format;
};

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
      o.format.bits = value;
    } else if (flag == "--group") {
      o.format.group = value;
    } else if (flag == "--tables") {
      o.format.tables = value != 0;
    } else if (flag == "--sparse") {
      o.format.sparse = value;
    } else if (flag == "--rotate") {
      o.format.rotate = value;
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
  RandomModel model(Llama3Shape(), o.format);
  RunnerOptions options;
  const int64_t batch = *std::max_element(o.batch.begin(), o.batch.end());
  const int64_t prefill = *std::max_element(o.prefill.begin(), o.prefill.end());
  options.kv_blocks =
      batch * (o.context / options.block_size + 1) + prefill / options.block_size + 1;
  options.max_step_tokens = std::max(o.chunk, 64);
  options.max_sequences = 64;
  std::unique_ptr<CudaWeights> weights = model.Make();
  auto runner = Must(CudaRunner::Create(model.config(), std::move(weights), options));
  Steps steps(*runner, o.logits != 0);
  const double kv_per_token =
      static_cast<double>(runner->kv_bytes()) / (options.kv_blocks * options.block_size);
  const RandomFormat& f = o.format;
  std::printf(
      "%s%d g%d, head W%d, sparse %d of 1000, rotated by %d: %.2f GB of weights read a step\n",
      f.tables ? "T" : "W", f.tables ? 4 : f.bits, f.group, f.bits, f.sparse, f.rotate,
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
