#include "kernels/cuda/chain_gemm.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "device.h"
#include "kernels/cuda/packed_gemm.h"
#include "kernels/cuda/repack.h"
#include "packed_values.h"

namespace babai::cuda {
namespace {

constexpr float kEps = 1e-5f;

struct Shape {
  int hidden, intermediate, heads_rows, qkv_rows;  // heads_rows: columns of o
};

struct Format {
  int bits;
  int64_t group;  // 1 << 20: one a row
  bool asymmetric;
  Dtype dtype;
};

std::string Name(const Shape& s, const Format& f, int m) {
  return std::to_string(s.hidden) + " " + std::to_string(s.intermediate) + ", " +
         std::to_string(f.bits) + " bits, group " + std::to_string(f.group) +
         (f.asymmetric ? ", asymmetric" : "") + (f.dtype == Dtype::kFp16 ? ", fp16" : ", bf16") +
         ", m " + std::to_string(m);
}

// One linear: as numbers, and on the device.
struct Linear {
  int64_t n, k;
  std::vector<float> values;
  DeviceVector<uint8_t> device;
  ChainLinear chain;

  Linear(const PackedInt& packed, int64_t rows, int64_t cols)
      : n(rows), k(cols), values(n * k), device(*RepackForGpu(packed.view())) {
    DecodeRows(packed.view(), 0, n, values.data());
    chain = {device.data(), *GpuShape(packed.view())};
  }
  // x [m, k] -> [m, n]
  std::vector<double> Times(const std::vector<double>& x) const {
    const int64_t m = static_cast<int64_t>(x.size()) / k;
    std::vector<double> y(m * n);
    for (int64_t t = 0; t < m; ++t) {
      for (int64_t r = 0; r < n; ++r) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) sum += double{values[r * k + i]} * x[t * k + i];
        y[t * n + r] = sum;
      }
    }
    return y;
  }
};

struct Block {
  Shape shape;
  Format format;
  std::mt19937 rng{17};
  Linear o, gate_up, down, qkv;
  std::vector<float> mlp_norm, next_norm;
  DeviceVector<float> mlp_norm_device, next_norm_device;

  Block(const Shape& s, const Format& f)
      : shape(s),
        format(f),
        o(Make(s.hidden, s.heads_rows)),
        gate_up(Make(2 * s.intermediate, s.hidden)),
        down(Make(s.hidden, s.intermediate)),
        qkv(Make(s.qkv_rows, s.hidden)),
        mlp_norm(Norm(1)),
        next_norm(Norm(2)),
        mlp_norm_device(mlp_norm),
        next_norm_device(next_norm) {}
  Linear Make(int64_t n, int64_t k) {
    return {RandomPacked(n, k, format.group, format.bits, format.asymmetric, rng), n, k};
  }
  std::vector<float> Norm(uint32_t seed) const {
    std::vector<float> weights = RandomFloats(shape.hidden, seed, 0.3f);
    for (float& v : weights) v += 1;
    return weights;
  }
};

double Rms(const std::vector<double>& v) {
  double squares = 0;
  for (const double x : v) squares += x * x;
  return std::sqrt(squares / static_cast<double>(v.size()));
}

std::vector<double> Normed(const std::vector<double>& x, const std::vector<float>& weights) {
  const size_t width = weights.size();
  std::vector<double> out(x.size());
  for (size_t t = 0; t < x.size(); t += width) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[t + i] * x[t + i];
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
    for (size_t i = 0; i < width; ++i) out[t + i] = x[t + i] * inverse * weights[i];
  }
  return out;
}

struct Result {
  std::vector<double> x, qkv;
};

Result Expected(const Block& b, const std::vector<uint16_t>& attention,
                const std::vector<float>& x) {
  const auto widened = [](const std::vector<float>& v) {
    return std::vector<double>(v.begin(), v.end());
  };
  Result r{widened(x), {}};
  const auto add = [&r](const std::vector<double>& y) {
    for (size_t i = 0; i < y.size(); ++i) r.x[i] += y[i];
  };
  add(b.o.Times(widened(Decoded(attention, b.format.dtype))));
  const std::vector<double> both = b.gate_up.Times(Normed(r.x, b.mlp_norm));
  std::vector<double> gated(both.size() / 2);
  const int64_t width = b.shape.intermediate;
  for (int64_t i = 0; i < static_cast<int64_t>(gated.size()); ++i) {
    const int64_t f = i % width, gate = i / width * 2 * width + f / 8 * 16 + f % 8;
    gated[i] = both[gate] / (1 + std::exp(-both[gate])) * both[gate + 8];
  }
  add(b.down.Times(gated));
  r.qkv = b.qkv.Times(Normed(r.x, b.next_norm));
  return r;
}

// Three roundings of what is handed on and one of the result follow one another, each of at most
// half an ulp of a value and independent of the others.
void ExpectNear(const std::vector<float>& got, const std::vector<double>& want, Dtype dtype) {
  ASSERT_EQ(got.size(), want.size());
  const double bound = 16 * HalfUlp(dtype) * Rms(want);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], bound) << i;
}

class ChainGemmTest : public GpuTest {
 protected:
  struct Inputs {
    int m;
    std::vector<uint16_t> attention;
    std::vector<float> x;
  };
  static Inputs MakeInputs(const Block& b, int m, uint32_t seed) {
    return {m, Encoded(RandomFloats(int64_t{m} * b.shape.heads_rows, seed), b.format.dtype),
            RandomFloats(int64_t{m} * b.shape.hidden, seed + 1, 5)};
  }
  static std::vector<uint8_t> FreshWorkspace(const Block& b) {
    return std::vector<uint8_t>(ChainGemmWorkspaceBytes(b.shape.hidden, b.shape.intermediate),
                                0xff);
  }
  // As the step's first kernel leaves them.
  static void SetSquares(const Block& b, const Inputs& in, void* workspace) {
    std::vector<float> squares(b.shape.hidden / 16 * 8);
    for (int64_t t = 0; t < in.m; ++t) {
      for (int64_t i = 0; i < b.shape.hidden; ++i) {
        const float v = in.x[t * b.shape.hidden + i];
        squares[i / 16 * 8 + t] += v * v;
      }
    }
    ASSERT_EQ(cudaMemcpy(SquaresOfX(workspace), squares.data(), squares.size() * 4,
                         cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  struct Outputs {
    std::vector<float> x;
    std::vector<uint16_t> qkv;
    bool operator==(const Outputs& other) const = default;
  };
  static Outputs Run(const Block& b, const Inputs& in, int turn, void* workspace,
                     const ChainGemmPlan& plan, bool with_qkv = true) {
    const DeviceVector<uint16_t> attention(in.attention);
    const DeviceVector<float> x(in.x);
    const DeviceVector<uint16_t> qkv(std::vector<uint16_t>(in.m * b.qkv.n, 0x7fff));
    ChainGemmArgs args{};
    args.attention = attention.data(), args.x = x.data(), args.qkv = qkv.data();
    args.o = b.o.chain, args.gate_up = b.gate_up.chain, args.down = b.down.chain;
    if (with_qkv) args.qkv_linear = b.qkv.chain, args.next_norm = b.next_norm_device.data();
    args.mlp_norm = b.mlp_norm_device.data();
    args.eps = kEps, args.workspace = workspace, args.turn = turn, args.m = in.m;
    args.dtype = b.format.dtype;
    Launched(LaunchChainGemm(args, plan, true, nullptr));
    return {x.ToHost(), qkv.ToHost()};
  }
  static ChainGemmPlan Plan(const Block& b) {
    const DeviceLimits limits = *GetDeviceLimits(0);
    return PlanChainGemm(b.o.chain.shape, limits.sms, limits.shared_bytes);
  }
  static void Check(const Block& b, const Inputs& in, const Outputs& got) {
    const Result want = Expected(b, in.attention, in.x);
    ExpectNear(got.x, want.x, b.format.dtype);
    ExpectNear(Decoded(got.qkv, b.format.dtype), want.qkv, b.format.dtype);
  }
};

TEST_F(ChainGemmTest, EqualsItsDefinitionInEveryFormat) {
  int m = 0;
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t group : {32, 64, 128, 1 << 20}) {
      for (const bool asymmetric : {false, true}) {
        for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
          m = m % kChainMaxTokens + 1;
          const Block b({256, 384, 512, 200}, {bits, group, asymmetric, dtype});
          SCOPED_TRACE(Name(b.shape, b.format, m));
          const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
          const Inputs in = MakeInputs(b, m, 3);
          SetSquares(b, in, workspace.data());
          Check(b, in, Run(b, in, 0, workspace.data(), Plan(b)));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// From less than a k tile for each warp and a strip for each block to several passes.
TEST_F(ChainGemmTest, TakesAnyShape) {
  const ChainGemmPlan full = Plan(Block({64, 64, 64, 8}, {4, 32, false, Dtype::kFp16}));
  for (const Shape& s :
       {Shape{32, 32, 32, 8}, {96, 224, 64, 72}, {576, 1536, 576, 960}, {1024, 1280, 512, 1536}}) {
    const Block b(s, {4, 32, false, Dtype::kFp16});
    for (const int blocks : {1, 3, full.blocks}) {
      for (const int slots : {2, full.slots}) {
        for (const int m : {1, 8}) {
          SCOPED_TRACE(Name(s, b.format, m) + ", " + std::to_string(blocks) + " blocks, " +
                       std::to_string(slots) + " slots");
          const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
          const Inputs in = MakeInputs(b, m, 5);
          SetSquares(b, in, workspace.data());
          Check(b, in,
                Run(b, in, 0, workspace.data(), {blocks, slots, slots == 2 ? 0 : slots - 1}));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Each launch finds its half of the workspace as the one before has put it back, whatever number of
// tokens that had, and the sums of squares of x.
TEST_F(ChainGemmTest, LaunchesFollowOneAnother) {
  const Block b({576, 1536, 576, 960}, {4, 64, true, Dtype::kFp16});
  const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
  const ChainGemmPlan plan = Plan(b);
  Inputs in = MakeInputs(b, 8, 7);
  SetSquares(b, in, workspace.data());
  int turn = 0;
  for (const int m : {8, 2, 8, 3, 7, 1}) {
    SCOPED_TRACE(m);
    in.attention.resize(m * b.shape.heads_rows), in.x.resize(m * b.shape.hidden), in.m = m;
    in.attention = Encoded(RandomFloats(int64_t{m} * b.shape.heads_rows, m), Dtype::kFp16);
    in.x.resize(m * b.shape.hidden);
    if (m > 3) SetSquares(b, in, workspace.data());  // a step of more tokens begins
    const Outputs out = Run(b, in, turn, workspace.data(), plan);
    Check(b, in, out);
    if (HasFatalFailure()) return;
    in.x = out.x, turn = 1 - turn;
  }
}

TEST_F(ChainGemmTest, EndsWithDownInTheLastBlock) {
  const Block b({256, 384, 512, 200}, {4, 128, false, Dtype::kFp16});
  const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
  const Inputs in = MakeInputs(b, 4, 9);
  SetSquares(b, in, workspace.data());
  const Outputs got = Run(b, in, 1, workspace.data(), Plan(b), false);
  ExpectNear(got.x, Expected(b, in.attention, in.x).x, Dtype::kFp16);
  for (const uint16_t v : got.qkv) ASSERT_EQ(v, 0x7fff) << "written without a product";
}

// fp16 would overflow or lose everything without the scale of what is handed on.
TEST_F(ChainGemmTest, TakesLargeAndSmallResidualStreams) {
  const Block b({256, 384, 512, 200}, {4, 128, false, Dtype::kFp16});
  for (const float size : {1e-6f, 1e6f}) {
    SCOPED_TRACE(size);
    const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
    Inputs in = MakeInputs(b, 2, 11);
    for (float& v : in.x) v *= size;
    SetSquares(b, in, workspace.data());
    Check(b, in, Run(b, in, 0, workspace.data(), Plan(b)));
    if (HasFatalFailure()) return;
  }
}

TEST_F(ChainGemmTest, RunsAreBitIdentical) {
  const Block b({1024, 2048, 1024, 1536}, {4, 128, false, Dtype::kFp16});
  for (const int m : {1, 8}) {
    const DeviceVector<uint8_t> workspace(FreshWorkspace(b));
    const Inputs in = MakeInputs(b, m, 13);
    SetSquares(b, in, workspace.data());
    const Outputs first = Run(b, in, 0, workspace.data(), Plan(b));
    for (int i = 1; i < ManyOf(200); ++i) {
      SetSquares(b, in, workspace.data());
      ASSERT_EQ(Run(b, in, i % 2, workspace.data(), Plan(b)), first) << m << " tokens, run " << i;
    }
  }
}

TEST(ChainGemmArgsTest, TakesOnlyWhatFitsTogether) {
  ChainGemmArgs args{};
  args.m = 1;
  const int some = 0;
  args.o = {&some, {512, 256, 4, 128, false}};
  args.gate_up = {&some, {2048, 512, 4, 128, false}};
  args.down = {&some, {512, 1024, 4, 128, false}};
  args.qkv_linear = {&some, {768, 512, 4, 128, false}};
  EXPECT_TRUE(TakesChainGemm(args));
  ChainGemmArgs other = args;
  other.m = kChainMaxTokens + 1;
  EXPECT_FALSE(TakesChainGemm(other));
  other = args, other.down.shape.bits = 8;
  EXPECT_FALSE(TakesChainGemm(other));
  other = args, other.gate_up.shape.n = 1024;
  EXPECT_FALSE(TakesChainGemm(other));
  other = args, other.qkv_linear.shape.k = 1024;
  EXPECT_FALSE(TakesChainGemm(other));
  other.qkv_linear = {};
  EXPECT_TRUE(TakesChainGemm(other));
}

}  // namespace
}  // namespace babai::cuda
