// How close are the packed-weight kernels to what memory and tensor cores allow?
//
//   gemm [--bits 4] [--group 128] [--asymmetric] [--bf16] [--m 1,2,4,8] [--late] [--reps 25]
//        [--plan blocks,stages,shared_bytes]     one plan for all four linears, of stream_gemm.h
//        [--slice blocks,team,warps,ahead,x_tiles,shared_bytes] likewise, of slice_gemm.h
//        [--tables]      4-bit codes and a table a row instead, table_gemm.h: up to 16 tokens
//        [--wide tokens,rows,parts,unit_tiles,stages,clusters,shared] likewise, of wide_gemm.h
//
// The four linears of a Llama-3-8B block in their order, as a CUDA graph of 160 launches over
// weights that rotate through 512 MB, so that none comes from the 60 MB of L2; medians of graph
// replays. The limit is the bytes of packed weights over 4613 GB/s (H200, measured read) and, with
// m, 2 m n k operations over 787 TFLOP/s. cuBLAS runs the same shapes in fp16 when libcublas.so.13
// is found.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/packed_gemm.h"
#include "kernels/cuda/slice_gemm.h"
#include "kernels/cuda/stream_gemm.h"
#include "kernels/cuda/table_gemm.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {
namespace {

constexpr double kReadBytesPerUs = 4613e3;  // H200
constexpr double kFlopsPerUs = 787e6;       // H200, bf16 on random data
constexpr int64_t kPoolBytes = int64_t{512} << 20;
constexpr int kBlocks = 40;  // of four linears, in one graph

struct Linear {
  const char* name;
  int k, n;
};
constexpr Linear kLinears[] = {
    {"qkv", 4096, 6144}, {"o", 4096, 4096}, {"gate-up", 4096, 28672}, {"down", 14336, 4096}};

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gemm: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK_CUDA(call) Check(call, #call)

void* Allocate(int64_t bytes) {
  void* p = nullptr;
  CHECK_CUDA(cudaMalloc(&p, bytes));
  return p;
}

struct Options {
  std::vector<int> bits{4}, m{1, 2, 4, 8};
  int group = 128, reps = 25;
  bool asymmetric = false, early = true, tables = false;
  Dtype dtype = Dtype::kFp16;
  StreamGemmPlan plan;
  SliceGemmPlan slice;
  WideGemmPlan wide;
};

std::vector<int> ParseList(const char* s) {
  std::vector<int> out;
  for (const char* at = s; at != nullptr;
       at = std::strchr(at, ',') ? std::strchr(at, ',') + 1 : nullptr)
    out.push_back(std::atoi(at));
  return out;
}

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&] {
      if (i + 1 == argc)
        std::fprintf(stderr, "gemm: %s needs a value\n", flag.c_str()), std::exit(2);
      return argv[++i];
    };
    if (flag == "--bits")
      o.bits = ParseList(value());
    else if (flag == "--m")
      o.m = ParseList(value());
    else if (flag == "--group")
      o.group = std::atoi(value());
    else if (flag == "--reps")
      o.reps = std::atoi(value());
    else if (flag == "--asymmetric")
      o.asymmetric = true;
    else if (flag == "--bf16")
      o.dtype = Dtype::kBf16;
    else if (flag == "--tables")
      o.tables = true;
    else if (flag == "--late")
      o.early = false;
    else if (flag == "--plan") {
      const std::vector<int> v = ParseList(value());
      if (v.size() == 3) o.plan = {v[0], v[1], v[2]};
    } else if (flag == "--slice") {
      const std::vector<int> v = ParseList(value());
      if (v.size() == 6) o.slice = {v[0], v[1], v[2], v[3], v[4], v[5]};
    } else if (flag == "--wide") {
      const std::vector<int> v = ParseList(value());
      if (v.size() == 7) o.wide = {v[0], v[1], v[2], v[3], v[4], v[5], v[6] != 0};
    } else {
      std::fprintf(stderr, "gemm: unknown %s; see the head of bench/gemm.cc\n", flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

// Random activations, and a pool of random tiles with sane scales that any linear may take for its
// weights.
class Data {
 public:
  explicit Data(const PackedShape& format) : tile_bytes_(format.tile_bytes()) {
    std::mt19937 rng(1);
    std::vector<uint16_t> x(64 << 20 >> 1);
    for (uint16_t& v : x) v = 0x3000 | (rng() & 0x8fff);  // fp16 +-0.125..0.5; bf16 tiny but normal
    x_ = Allocate(x.size() * 2), y_ = Allocate(int64_t{128} << 20);
    constexpr int kMostBlocks = 264;
    workspace_ = Allocate(WideGemmWorkspaceBytes(kMostBlocks));
    CHECK_CUDA(cudaMemset(workspace_, 0xff, WideGemmWorkspaceBytes(kMostBlocks)));
    CHECK_CUDA(cudaMemcpy(x_, x.data(), x.size() * 2, cudaMemcpyHostToDevice));
    constexpr int kTiles = 4096;
    std::vector<uint8_t> tiles(int64_t{kTiles} * tile_bytes_);
    for (uint8_t& v : tiles) v = rng();
    for (int i = 0; i < kTiles; ++i) {
      uint16_t* scales =
          reinterpret_cast<uint16_t*>(tiles.data() + i * tile_bytes_ + format.code_bytes());
      for (int j = 0; j < format.groups_per_tile() * kTileRows; ++j)
        scales[j] = 0x2000 | (rng() & 0x3ff);  // 2^-7 to 2^-6
    }
    pool_ = Allocate(kPoolBytes + (int64_t{128} << 20) + tiles.size());
    for (int64_t at = 0; at < kPoolBytes + (int64_t{128} << 20); at += tiles.size()) {
      CHECK_CUDA(cudaMemcpy(static_cast<char*>(pool_) + at, tiles.data(), tiles.size(),
                            cudaMemcpyHostToDevice));
    }
  }
  ~Data() { cudaFree(x_), cudaFree(y_), cudaFree(pool_), cudaFree(workspace_); }

  const void* x() const { return x_; }
  void* y() const { return y_; }
  void* workspace() const { return workspace_; }
  // Those of a matrix: some of x, which are sane values.
  const uint16_t* tables() const { return static_cast<const uint16_t*>(x_); }
  // The next `bytes` of the pool, from the start again once 512 MB have gone by.
  const void* NextWeights(int64_t bytes) {
    if (at_ + bytes > kPoolBytes) at_ = 0;
    const void* p = static_cast<const char*>(pool_) + at_;
    const int64_t step = int64_t{tile_bytes_} * 128;  // keeps tiles whole and 128-byte alignment
    at_ += (bytes + step - 1) / step * step;
    return p;
  }

 private:
  int tile_bytes_;
  int64_t at_ = 0;
  void *x_, *y_, *pool_, *workspace_;
};

// Median time of one replay of what `enqueue` puts on the stream.
double MedianUs(int reps, const std::function<void(cudaStream_t)>& enqueue) {
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue(stream);
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  // Back to back, as a decode loop runs: between synchronizations the clocks would fall.
  std::vector<cudaEvent_t> events(reps + 1);
  for (cudaEvent_t& e : events) CHECK_CUDA(cudaEventCreate(&e));
  for (int i = 0; i < reps / 2 + 2; ++i) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  for (cudaEvent_t e : events) {
    CHECK_CUDA(cudaEventRecord(e, stream));
    if (e != events.back()) CHECK_CUDA(cudaGraphLaunch(exec, stream));
  }
  CHECK_CUDA(cudaStreamSynchronize(stream));
  std::vector<float> us(reps);
  for (int i = 0; i < reps; ++i) {
    CHECK_CUDA(cudaEventElapsedTime(&us[i], events[i], events[i + 1]));
    us[i] *= 1e3f;
  }
  std::sort(us.begin(), us.end());
  for (cudaEvent_t e : events) cudaEventDestroy(e);
  cudaGraphExecDestroy(exec), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
  return us[us.size() / 2];
}

constexpr int kScaleExponent = -6;  // of Data's

PackedShape ShapeOf(const Options& o, int bits, const Linear& l) {
  if (o.tables) return TableShape(l.n, l.k, o.group);
  return {l.n, l.k, bits, o.group, o.asymmetric, kScaleExponent};
}

class Bench {
 public:
  Bench(const Options& o, int bits, const DeviceLimits& device)
      : o_(o), bits_(bits), device_(device), data_(ShapeOf(o, bits, kLinears[0])) {}

  // One launch; the plan is the library's unless one is given.
  void Enqueue(const Linear& l, int m, cudaStream_t stream) {
    const PackedShape shape = ShapeOf(o_, bits_, l);
    const void* weights = data_.NextWeights(shape.bytes());
    if (o_.tables) {
      const TableWeights codes{static_cast<const uint8_t*>(weights), data_.tables(), shape};
      CHECK_CUDA(TableGemm({data_.x(), data_.y(), codes, m, o_.dtype}, {stream, o_.early}));
      return;
    }
    if (o_.plan.stages > 0) {
      CHECK_CUDA(LaunchStreamGemm({data_.x(), weights, data_.y(), shape, m, o_.dtype}, o_.plan,
                                  o_.early, stream));
      return;
    }
    if (o_.slice.blocks > 0) {
      CHECK_CUDA(
          LaunchSliceGemm({{data_.x(), weights, data_.y(), shape, m, o_.dtype}, data_.workspace()},
                          o_.slice, o_.early, stream));
      return;
    }
    if (o_.wide.tokens > 0) {
      CHECK_CUDA(
          LaunchWideGemm({data_.x(), weights, data_.y(), data_.workspace(), shape, m, o_.dtype},
                         o_.wide, o_.early, stream));
      return;
    }
    turn_ = turn_ == Turn::kWide ? Turn::kNarrow : Turn::kWide;
    const absl::Status done = PackedGemm({data_.x(), weights, data_.y(), data_.workspace(), shape,
                                          m, o_.dtype, o_.early, GemmEnds{}, turn_},
                                         device_, stream);
    if (!done.ok()) std::fprintf(stderr, "gemm: %s\n", done.ToString().c_str()), std::exit(1);
  }

  double LinearUs(const Linear& l, int m) {
    constexpr int kLaunches = 48;
    return MedianUs(o_.reps,
                    [&](cudaStream_t s) {
                      for (int i = 0; i < kLaunches; ++i) Enqueue(l, m, s);
                    }) /
           kLaunches;
  }

  double BlockUs(int m) {
    return MedianUs(o_.reps,
                    [&](cudaStream_t s) {
                      for (int i = 0; i < kBlocks; ++i) {
                        for (const Linear& l : kLinears) Enqueue(l, m, s);
                      }
                    }) /
           kBlocks;
  }

  void Report(int m) {
    double bytes = 0, flops = 0, sum_alone = 0;
    std::string alone;
    for (const Linear& l : kLinears) {
      bytes += ShapeOf(o_, bits_, l).bytes() + (o_.tables ? l.n * kTableValues * 2.0 : 0);
      flops += 2.0 * m * l.n * l.k;
      const double us = LinearUs(l, m);
      char text[64];
      std::snprintf(text, sizeof(text), " %6.2f", us);
      alone += text, sum_alone += us;
    }
    const double us = BlockUs(m);
    const double limit = std::max(bytes / kReadBytesPerUs, flops / kFlopsPerUs);
    std::printf("%c%d m %4d  %7.2f us  limit %6.2f (%3.0f %%)   qkv/o/gate-up/down alone%s\n",
                o_.tables ? 'T' : 'W', bits_, m, us, limit, 100 * limit / us, alone.c_str());
  }

 private:
  Options o_;
  int bits_;
  DeviceLimits device_;
  Turn turn_ = Turn::kNarrow;  // the last launch's
  Data data_;
};

// cublasGemmEx of libcublas.so.13, found at run time: y[m, n] = x[m, k] w[n, k]^T in fp16.
void ReportCublas(const std::vector<int>& ms, int reps) {
  void* lib = dlopen("libcublas.so.13", RTLD_NOW);
  if (lib == nullptr) {
    std::printf("cuBLAS: libcublas.so.13 is not on the library path\n");
    return;
  }
  const auto create = reinterpret_cast<int (*)(void**)>(dlsym(lib, "cublasCreate_v2"));
  const auto set_stream =
      reinterpret_cast<int (*)(void*, cudaStream_t)>(dlsym(lib, "cublasSetStream_v2"));
  const auto set_workspace =
      reinterpret_cast<int (*)(void*, void*, size_t)>(dlsym(lib, "cublasSetWorkspace_v2"));
  const auto gemm =
      reinterpret_cast<int (*)(void*, int, int, int, int, int, const void*, const void*, int, int,
                               const void*, int, int, const void*, void*, int, int, int, int)>(
          dlsym(lib, "cublasGemmEx"));
  void* handle = nullptr;
  if (create(&handle) != 0) return;
  constexpr int kHalf = 2, kCompute32F = 68, kTranspose = 1, kPlain = 0,
                kDefault = -1;  // cublas_api.h, library_types.h
  Data data({64, 128, 8, 128, false});
  void* workspace = Allocate(32 << 20);
  std::vector<uint16_t> random(1 << 20);
  std::mt19937 rng(2);
  for (uint16_t& v : random) v = 0x2000 | (rng() & 0x8fff);
  void* weights = Allocate(int64_t{1} << 30);
  for (int64_t at = 0; at < int64_t{1} << 30; at += random.size() * 2) {
    CHECK_CUDA(cudaMemcpy(static_cast<char*>(weights) + at, random.data(), random.size() * 2,
                          cudaMemcpyHostToDevice));
  }
  for (const int m : ms) {
    int64_t at = 0;
    const double us =
        MedianUs(reps,
                 [&](cudaStream_t s) {
                   set_stream(handle, s), set_workspace(handle, workspace, 32 << 20);
                   for (int i = 0; i < kBlocks; ++i) {
                     for (const Linear& l : kLinears) {
                       if (at + int64_t{2} * l.n * l.k > int64_t{1} << 30) at = 0;
                       const float one = 1, zero = 0;
                       if (gemm(handle, kTranspose, kPlain, l.n, m, l.k, &one,
                                static_cast<char*>(weights) + at, kHalf, l.k, data.x(), kHalf, l.k,
                                &zero, data.y(), kHalf, l.n, kCompute32F, kDefault) != 0) {
                         std::fprintf(stderr, "gemm: cublasGemmEx failed\n"), std::exit(1);
                       }
                       at += int64_t{2} * l.n * l.k;
                     }
                   }
                 }) /
        kBlocks;
    std::printf("cuBLAS fp16 m %4d  %7.2f us\n", m, us);
  }
}

int Main(int argc, char** argv) {
  const Options o = Parse(argc, argv);
  const absl::StatusOr<DeviceLimits> device = GetDeviceLimits(0);
  if (!device.ok()) {
    std::printf("gemm: skipped, needs a GPU: %s\n", device.status().ToString().c_str());
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("group %d, %s, %s, %s\n", o.group, o.asymmetric ? "asymmetric" : "symmetric",
              o.dtype == Dtype::kFp16 ? "fp16" : "bf16", o.early ? "early start" : "late start");
  for (const int bits : o.bits) {
    Bench bench(o, bits, *device);
    for (const int m : o.m) bench.Report(m);
  }
  ReportCublas(o.m, o.reps);
  return 0;
}

}  // namespace
}  // namespace babai::cuda

int main(int argc, char** argv) { return babai::cuda::Main(argc, argv); }
