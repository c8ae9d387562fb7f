// How close does attention of prompts come to what tensor cores allow?
//
//   attention [--heads 32] [--kv-heads 8] [--dim 128] [--chunk 2048] [--start 0,2048,6144]
//             [--window 0] [--softcap 0] [--bf16] [--reps 25]
//
// One layer's PrefillAttention() of a chunk of new tokens behind `start` cached ones, over a paged
// cache of blocks of 16 in a shuffled order, as a CUDA graph of launches; medians of its replays.
// Operations are counted where the mask lets a query see a key. The limit is 787 TFLOP/s (H200,
// bf16 on random data).
#include "kernels/cuda/attention.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace babai::cuda {
namespace {

constexpr double kFlopsPerUs = 787e6;  // H200, bf16 on random data
constexpr int kBlockSize = 16;
constexpr int kLaunches = 20;  // of a graph

#define CHECK_CUDA(call) Check(call, #call)
void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "attention: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
T* ToDevice(const std::vector<T>& values) {
  void* p = nullptr;
  CHECK_CUDA(cudaMalloc(&p, values.size() * sizeof(T)));
  CHECK_CUDA(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(p);
}

// fp16 of magnitudes 2^-3 to 1; in bf16 smaller, but normal.
std::vector<uint16_t> RandomValues(int64_t count) {
  std::mt19937 rng(1);
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) v = 0x3000 | (rng() & 0x8bff);
  return values;
}

struct Options {
  int heads = 32, kv_heads = 8, dim = 128, chunk = 2048, window = 0, reps = 25;
  float softcap = 0;
  Dtype dtype = Dtype::kFp16;
  std::vector<int> start{0, 2048, 6144};
};

Options Parse(int argc, char** argv) {
  Options o;
  const auto numbers = [](const char* s) {
    std::vector<int> list;
    for (; s != nullptr; s = std::strchr(s, ',') ? std::strchr(s, ',') + 1 : nullptr)
      list.push_back(std::atoi(s));
    return list;
  };
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--bf16") {
      o.dtype = Dtype::kBf16;
      continue;
    }
    if (i + 1 == argc) {
      std::fprintf(stderr, "attention: %s: see the head of bench/attention.cc\n", flag.c_str());
      std::exit(2);
    }
    const char* value = argv[++i];
    if (flag == "--heads") {
      o.heads = std::atoi(value);
    } else if (flag == "--kv-heads") {
      o.kv_heads = std::atoi(value);
    } else if (flag == "--dim") {
      o.dim = std::atoi(value);
    } else if (flag == "--chunk") {
      o.chunk = std::atoi(value);
    } else if (flag == "--start") {
      o.start = numbers(value);
    } else if (flag == "--window") {
      o.window = std::atoi(value);
    } else if (flag == "--softcap") {
      o.softcap = static_cast<float>(std::atof(value));
    } else if (flag == "--reps") {
      o.reps = std::atoi(value);
    } else {
      std::fprintf(stderr, "attention: unknown %s; see the head of bench/attention.cc\n",
                   flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

double MedianUs(const Options& o, const AttentionArgs& args, const PrefillTile* tiles, int count) {
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLaunches; ++i)
    CHECK_CUDA(PrefillAttention(args, tiles, count, {stream, true}));
  cudaGraph_t graph;
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<cudaEvent_t> events(o.reps + 1);
  for (cudaEvent_t& e : events) CHECK_CUDA(cudaEventCreate(&e));
  for (int i = 0; i < o.reps / 4 + 1; ++i) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  for (cudaEvent_t e : events) {
    CHECK_CUDA(cudaEventRecord(e, stream));
    if (e != events.back()) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  }
  CHECK_CUDA(cudaStreamSynchronize(stream));
  std::vector<float> us(o.reps);
  for (int i = 0; i < o.reps; ++i) {
    CHECK_CUDA(cudaEventElapsedTime(&us[i], events[i], events[i + 1]));
    us[i] *= 1e3f / kLaunches;
  }
  std::sort(us.begin(), us.end());
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
  return us[us.size() / 2];
}

void Report(const Options& o, int start) {
  const int context = start + o.chunk, blocks = (context + kBlockSize - 1) / kBlockSize;
  KvCache cache{nullptr, nullptr, o.kv_heads, o.dim, kBlockSize};
  const std::vector<uint16_t> values = RandomValues(blocks * cache.block_values());
  uint16_t* k = ToDevice(values);
  uint16_t* v = ToDevice(values);
  uint16_t* q = ToDevice(RandomValues(int64_t{o.chunk} * o.heads * o.dim));
  uint16_t* out = ToDevice(std::vector<uint16_t>(int64_t{o.chunk} * o.heads * o.dim));
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(2));
  std::vector<PrefillTile> tiles(PrefillTiles(o.chunk, o.heads, o.kv_heads));
  for (size_t i = 0; i < tiles.size(); ++i) tiles[i].tile = static_cast<int>(i);
  int32_t* d_table = ToDevice(table);
  PrefillTile* d_tiles = ToDevice(tiles);
  AttentionSequence* sequence = ToDevice(std::vector<AttentionSequence>{{0, o.chunk, start, 0}});
  cache.k = reinterpret_cast<__half*>(k), cache.v = reinterpret_cast<__half*>(v);
  AttentionArgs args{};
  args.q = {q, int64_t{o.heads} * o.dim}, args.out = out, args.cache = cache;
  args.sequences = sequence, args.tables = d_table, args.heads = o.heads;
  args.scale = 0.1f, args.softcap = o.softcap, args.window = o.window, args.dtype = o.dtype;
  const double us = MedianUs(o, args, d_tiles, static_cast<int>(tiles.size()));
  double pairs = 0;
  for (int p = start; p < context; ++p) pairs += o.window > 0 ? std::min(p + 1, o.window) : p + 1;
  const double flops = 4.0 * pairs * o.heads * o.dim, limit = flops / kFlopsPerUs;
  std::printf(
      "%d of %d heads of %d, %d tokens behind %5d  %8.1f us  %5.0f TFLOP/s  limit %8.1f us (%2.0f "
      "%%)\n",
      o.heads, o.kv_heads, o.dim, o.chunk, start, us, flops / us / 1e6, limit, 100 * limit / us);
  for (void* p : {static_cast<void*>(k), static_cast<void*>(v), static_cast<void*>(q),
                  static_cast<void*>(out), static_cast<void*>(d_table), static_cast<void*>(d_tiles),
                  static_cast<void*>(sequence)}) {
    cudaFree(p);
  }
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("attention: skipped, needs a GPU\n");
    return 0;
  }
  for (const int start : o.start) Report(o, start);
  return 0;
}

}  // namespace
}  // namespace babai::cuda

int main(int argc, char** argv) { return babai::cuda::Main(argc, argv); }
