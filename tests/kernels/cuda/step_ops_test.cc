// The kernels between the products of a step, each against its definition on the host.
#include <cmath>
#include <tuple>

#include "device.h"
#include "kernels/cuda/activate.h"
#include "kernels/cuda/add_norm.h"
#include "kernels/cuda/choose_tokens.h"
#include "kernels/cuda/convert.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/repack.h"
#include "kernels/cuda/repack_on_device.h"
#include "kernels/cuda/rope_angles.h"
#include "packed_values.h"

namespace babai::cuda {
namespace {

constexpr double kEps = 0x1p-24;  // of fp32

class StepOps : public GpuTest {};

// --- embedding

class PackedEmbedding : public GpuTest,
                        public testing::WithParamInterface<std::tuple<int, bool, int>> {};

TEST_P(PackedEmbedding, RowsAreTheFormats) {
  const auto [bits, asymmetric, group] = GetParam();
  constexpr int kVocab = 37, kHidden = 96;
  std::mt19937 rng(1);
  const PackedInt w = RandomPacked(kVocab, kHidden, group, bits, asymmetric, rng);
  const DeviceVector<uint8_t> codes(w.codes), zeros(w.zeros);
  const DeviceVector<uint16_t> scales(w.scales);
  const std::vector<int32_t> ids = {36, 0, 5, 5, 17}, at = {0, 3, 1, 2, 3};
  const std::vector<float> rows = RandomFloats(4 * kHidden, 2);
  const DeviceVector<int32_t> tokens(ids), positions(at);
  const DeviceVector<float> position_rows(rows), x(std::vector<float>(5 * kHidden, NAN));
  EmbedArgs args{};
  args.table = {EmbeddingTable::Kind::kPacked,       codes.data(), scales.data(),
                asymmetric ? zeros.data() : nullptr, bits,         static_cast<int>(w.group)};
  args.tokens = tokens.data(), args.positions = positions.data();
  args.position_rows = position_rows.data(), args.scale = 3, args.x = x.data();
  args.count = 5, args.hidden = kHidden;
  Launched(Embed(args, {}));
  const std::vector<float> got = x.ToHost();
  for (int t = 0; t < 5; ++t) {
    for (int c = 0; c < kHidden; ++c) {
      const double want = 3.0 * DecodeWeight(w.view(), ids[t], c) + rows[at[t] * kHidden + c];
      ASSERT_NEAR(got[t * kHidden + c], want, 4 * kEps * (1 + std::abs(want))) << t << " " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedEmbedding,
                         testing::Combine(testing::Values(2, 3, 4, 8), testing::Bool(),
                                          testing::Values(32, 96)));

TEST_F(StepOps, DenseEmbeddingRows) {
  constexpr int kVocab = 11, kHidden = 40;
  const std::vector<float> w = RandomFloats(kVocab * kHidden, 3);
  const DeviceVector<int32_t> tokens({10, 0, 4}), positions({0, 1, 2});
  const DeviceVector<float> as_float(w);
  const DeviceVector<uint16_t> half(Encoded(w, Dtype::kFp16)), brain(Encoded(w, Dtype::kBf16));
  using Kind = EmbeddingTable::Kind;
  for (const auto& [kind, values, want] :
       {std::tuple{Kind::kFp32, static_cast<const void*>(as_float.data()), w},
        std::tuple{Kind::kFp16, static_cast<const void*>(half.data()), Rounded(w, Dtype::kFp16)},
        std::tuple{Kind::kBf16, static_cast<const void*>(brain.data()),
                   Rounded(w, Dtype::kBf16)}}) {
    const DeviceVector<float> x(std::vector<float>(3 * kHidden, NAN));
    EmbedArgs args{};
    args.table.kind = kind, args.table.values = values;
    args.tokens = tokens.data(), args.positions = positions.data(), args.scale = 1;
    args.x = x.data(), args.count = 3, args.hidden = kHidden;
    Launched(Embed(args, {}));
    const std::vector<float> got = x.ToHost();
    for (int c = 0; c < kHidden; ++c) {
      EXPECT_EQ(got[c], want[10 * kHidden + c]);
      EXPECT_EQ(got[2 * kHidden + c], want[4 * kHidden + c]);
    }
  }
}

// --- norms

struct NormCase {
  int hidden;
  bool layer_norm, post, bias;
  Dtype dtype;
};

std::vector<double> NormOf(const std::vector<double>& v, const std::vector<float>& weight,
                           const std::vector<float>& bias, bool layer_norm, double eps) {
  double mean = 0, squares = 0;
  if (layer_norm) {
    for (const double value : v) mean += value / static_cast<double>(v.size());
  }
  for (const double value : v) squares += (value - mean) * (value - mean);
  const double inverse = 1 / std::sqrt(squares / static_cast<double>(v.size()) + eps);
  std::vector<double> out;
  for (size_t c = 0; c < v.size(); ++c) {
    out.push_back((v[c] - mean) * inverse * weight[c] + (layer_norm ? bias[c] : 0));
  }
  return out;
}

class AddNormTest : public GpuTest, public testing::WithParamInterface<NormCase> {};

// Sums of `hidden` terms of one sign by a tree: a few eps. The rounding of h, half an ulp, is what
// counts.
TEST_P(AddNormTest, EqualsItsDefinition) {
  const NormCase& c = GetParam();
  constexpr int kRows = 5;
  const int width = c.hidden;
  const float eps = 1e-5f;
  const std::vector<float> x0 = RandomFloats(kRows * width, 1, 3);
  const std::vector<float> y0 = Rounded(RandomFloats(kRows * width, 2), c.dtype);
  const std::vector<float> bias = RandomFloats(width, 3), weight = RandomFloats(width, 4),
                           norm_bias = RandomFloats(width, 5), post = RandomFloats(width, 6),
                           post_bias = RandomFloats(width, 7);
  const std::vector<int32_t> picked = {4, 1};
  const DeviceVector<float> x(x0), d_bias(bias), d_weight(weight), d_norm_bias(norm_bias),
      d_post(post), d_post_bias(post_bias);
  const DeviceVector<uint16_t> y(Encoded(y0, c.dtype)), h(std::vector<uint16_t>(kRows * width)),
      h_picked(std::vector<uint16_t>(2 * width));
  const DeviceVector<int32_t> row(picked);
  AddNormArgs args{};
  args.x = x.data(), args.y = y.data(), args.bias = c.bias ? d_bias.data() : nullptr;
  if (c.post) args.post = {d_post.data(), d_post_bias.data()};
  args.norm = {d_weight.data(), d_norm_bias.data()};
  args.rows = 2, args.hidden = width, args.layer_norm = c.layer_norm, args.eps = eps;
  args.dtype = c.dtype;
  args.h = h_picked.data(), args.row = row.data();
  Launched(AddNorm(args, {}));  // leaves x as it is
  EXPECT_EQ(x.ToHost(), x0);
  args.h = h.data(), args.row = nullptr, args.rows = kRows;
  Launched(AddNorm(args, {}));

  const std::vector<float> got_x = x.ToHost(), got = Decoded(h.ToHost(), c.dtype),
                           got_picked = Decoded(h_picked.ToHost(), c.dtype);
  for (int r = 0; r < kRows; ++r) {
    std::vector<double> add, sum;
    for (int i = 0; i < width; ++i) add.push_back(y0[r * width + i] + (c.bias ? bias[i] : 0.0));
    if (c.post) add = NormOf(add, post, post_bias, c.layer_norm, eps);
    for (int i = 0; i < width; ++i) sum.push_back(x0[r * width + i] + add[i]);
    const std::vector<double> want = NormOf(sum, weight, norm_bias, c.layer_norm, eps);
    for (int i = 0; i < width; ++i) {
      ASSERT_NEAR(got_x[r * width + i], sum[i],
                  64 * kEps * (1 + std::abs(sum[i]) + std::abs(add[i])));
      const double close =
          256 * kEps * (1 + std::abs(want[i])) + HalfUlp(c.dtype) * std::abs(want[i]);
      ASSERT_NEAR(got[r * width + i], want[i], close + 1e-7) << r << " " << i;
    }
    for (int p = 0; p < 2; ++p) {
      if (picked[p] != r) continue;
      for (int i = 0; i < width; ++i) ASSERT_EQ(got_picked[p * width + i], got[r * width + i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, AddNormTest,
                         testing::Values(NormCase{64, false, false, false, Dtype::kFp16},
                                         NormCase{576, true, false, true, Dtype::kFp16},
                                         NormCase{1152, false, true, false, Dtype::kBf16},
                                         NormCase{4096, false, false, true, Dtype::kBf16},
                                         NormCase{5120, true, true, true, Dtype::kFp16},
                                         NormCase{16384, false, true, false, Dtype::kFp16},
                                         NormCase{18432, true, false, false, Dtype::kBf16},
                                         NormCase{kMaxNormWidth, false, true, true, Dtype::kFp16}));

TEST_F(StepOps, NormWithoutAnAddendKeepsX) {
  const std::vector<float> x0 = RandomFloats(3 * 64, 1);
  const DeviceVector<float> x(x0), weight(std::vector<float>(64, 2.0f));
  const DeviceVector<uint16_t> h(std::vector<uint16_t>(3 * 64));
  AddNormArgs args{};
  args.x = x.data(), args.norm.weight = weight.data(), args.h = h.data(), args.rows = 3;
  args.hidden = 64, args.eps = 1e-6f, args.dtype = Dtype::kFp16;
  Launched(AddNorm(args, {}));
  EXPECT_EQ(x.ToHost(), x0);
  const std::vector<float> got = Decoded(h.ToHost(), Dtype::kFp16);
  for (int r = 0; r < 3; ++r) {
    const std::vector<double> row(x0.begin() + r * 64, x0.begin() + (r + 1) * 64);
    const auto want = NormOf(row, std::vector<float>(64, 2.0f), {}, false, 1e-6);
    for (int i = 0; i < 64; ++i)
      ASSERT_NEAR(got[r * 64 + i], want[i], 0x1p-10 * std::abs(want[i]) + 1e-6);
  }
}

// --- q, k, v

struct QkvCase {
  int heads, kv_heads, dim, pairs;  // pairs 0: no rope
  bool norm, bias;
  Dtype dtype;
};

class FinishQkvTest : public GpuTest, public testing::WithParamInterface<QkvCase> {};

TEST_P(FinishQkvTest, EqualsItsDefinition) {
  const QkvCase& c = GetParam();
  constexpr int kTokens = 6, kBlock = 16, kBlocks = 3, kAngles = 70;
  const float eps = 1e-6f;
  const int q_rows = c.heads * c.dim, kv_rows = c.kv_heads * c.dim, stride = q_rows + 2 * kv_rows;
  const std::vector<float> rows = Rounded(RandomFloats(kTokens * stride, 1), c.dtype);
  const std::vector<float> bias = RandomFloats(stride, 2), q_norm = RandomFloats(c.dim, 3),
                           k_norm = RandomFloats(c.dim, 4);
  const std::vector<int32_t> positions = {0, 1, 17, 3, 100000, 5}, slots = {0, 1, 33, 3, -1, 47};
  std::vector<double> inv_freq;
  for (int i = 0; i < kAngles; ++i) inv_freq.push_back(std::pow(10000.0, -i / 35.0));
  const std::vector<float> scales(kAngles, 1.25f);

  const DeviceVector<uint16_t> d_rows(Encoded(rows, c.dtype));
  const DeviceVector<float> d_bias(bias), d_q_norm(q_norm), d_k_norm(k_norm), d_scales(scales);
  const DeviceVector<int32_t> d_positions(positions), d_slots(slots);
  const DeviceVector<double> d_inv_freq(inv_freq);
  const DeviceVector<float2> angles(std::vector<float2>(kTokens * kAngles));
  Launched(RopeAngles(
      {d_positions.data(), d_inv_freq.data(), d_scales.data(), angles.data(), kTokens, kAngles},
      {}));
  KvCache cache{nullptr, nullptr, c.kv_heads, c.dim, kBlock};
  const std::vector<uint16_t> empty(kBlocks * cache.block_values(), 0x7e00);  // NaN: untouched
  const DeviceVector<uint16_t> k(empty), v(empty);
  cache.k = reinterpret_cast<__half*>(k.data()), cache.v = reinterpret_cast<__half*>(v.data());
  FinishQkvArgs args{};
  args.q = d_rows.data(), args.q_stride = stride;
  args.k = {d_rows.data() + q_rows, stride}, args.v = {d_rows.data() + q_rows + kv_rows, stride};
  if (c.bias) {
    args.q_bias = d_bias.data(), args.k_bias = d_bias.data() + q_rows;
    args.v_bias = d_bias.data() + q_rows + kv_rows;
  }
  if (c.norm) args.q_norm = d_q_norm.data(), args.k_norm = d_k_norm.data();
  constexpr int kOffset = 3;  // this rope's angles begin there
  if (c.pairs > 0) args.angles = angles.data() + kOffset;
  args.pairs = c.pairs, args.angle_stride = kAngles, args.slots = d_slots.data();
  args.cache = cache, args.count = kTokens, args.heads = c.heads, args.eps = eps;
  args.dtype = c.dtype;
  Launched(FinishQkv(args, {}));

  const std::vector<float> got_q = Decoded(d_rows.ToHost(), c.dtype),
                           got_k = Decoded(k.ToHost(), Dtype::kFp16),
                           got_v = Decoded(v.ToHost(), Dtype::kFp16);
  for (int t = 0; t < kTokens; ++t) {
    for (int item = 0; item < c.heads + 2 * c.kv_heads; ++item) {
      std::vector<double> want(c.dim);
      double squares = 0;
      for (int d = 0; d < c.dim; ++d) {
        const int at = item * c.dim + d;
        want[d] = rows[t * stride + at] + (c.bias ? bias[at] : 0.0);
        squares += want[d] * want[d];
      }
      const bool is_q = item < c.heads, is_v = item >= c.heads + c.kv_heads;
      if (c.norm && !is_v) {
        const double inverse = 1 / std::sqrt(squares / c.dim + eps);
        for (int d = 0; d < c.dim; ++d) want[d] *= inverse * (is_q ? q_norm[d] : k_norm[d]);
      }
      for (int i = 0; i < (is_v ? 0 : c.pairs); ++i) {
        const double angle = positions[t] * inv_freq[i + kOffset], a = want[i],
                     b = want[i + c.pairs];
        want[i] = 1.25 * (a * std::cos(angle) - b * std::sin(angle));
        want[i + c.pairs] = 1.25 * (b * std::cos(angle) + a * std::sin(angle));
      }
      if (!is_q && slots[t] < 0) continue;
      for (int d = 0; d < c.dim; ++d) {
        float got = got_q[t * stride + item * c.dim + d];
        if (!is_q) {
          const int head = (item - c.heads) % c.kv_heads;
          got = (is_v ? got_v : got_k)[cache.RowAt(slots[t], head) + d];
        }
        const double half_ulp = is_q ? HalfUlp(c.dtype) : HalfUlp(Dtype::kFp16);
        ASSERT_NEAR(got, want[d],
                    half_ulp * std::abs(want[d]) + 64 * kEps * (4 + std::abs(want[d])))
            << "token " << t << " head " << item << " feature " << d;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, FinishQkvTest,
                         testing::Values(QkvCase{4, 2, 16, 8, false, false, Dtype::kFp16},
                                         QkvCase{9, 3, 64, 32, false, true, Dtype::kFp16},
                                         QkvCase{8, 8, 80, 16, false, true, Dtype::kBf16},
                                         QkvCase{4, 1, 128, 64, true, false, Dtype::kFp16},
                                         QkvCase{2, 1, 256, 64, true, false, Dtype::kBf16},
                                         QkvCase{12, 12, 64, 0, false, true, Dtype::kFp16}));

// --- activations

double Activated(ActivationKind kind, double v) {
  switch (kind) {
    case ActivationKind::kSilu:
      return v / (1 + std::exp(-v));
    case ActivationKind::kGeluTanh:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case ActivationKind::kGeluErf:
      return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    default:
      return std::max(v, 0.0);
  }
}

class ActivateTest : public GpuTest,
                     public testing::WithParamInterface<std::tuple<ActivationKind, bool, Dtype>> {};

TEST_P(ActivateTest, EqualsItsDefinition) {
  const auto [kind, gated, dtype] = GetParam();
  constexpr int kRows = 3, kWidth = 1096;
  const std::vector<float> in = Rounded(RandomFloats(kRows * 2 * kWidth, 1, 2), dtype);
  const std::vector<float> bias = RandomFloats(2 * kWidth, 2);
  const DeviceVector<uint16_t> d_in(Encoded(in, dtype)), out(std::vector<uint16_t>(kRows * kWidth));
  const DeviceVector<float> d_bias(bias);
  ActivateArgs args{};
  if (gated) args.gate = {d_in.data(), 2 * kWidth}, args.gate_bias = d_bias.data();
  args.up = {d_in.data() + kWidth, 2 * kWidth}, args.up_bias = d_bias.data() + kWidth;
  args.out = out.data(), args.rows = kRows, args.width = kWidth, args.kind = kind;
  args.dtype = dtype;
  Launched(Activate(args, {}));
  const std::vector<float> got = Decoded(out.ToHost(), dtype);
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kWidth; ++i) {
      const double gate = in[r * 2 * kWidth + i] + double{bias[i]};
      const double up = in[r * 2 * kWidth + kWidth + i] + double{bias[kWidth + i]};
      const double want = gated ? Activated(kind, gate) * up : Activated(kind, up);
      // gelu's 1 + tanh loses digits where it is near 0: eps of the input, not of the result.
      const double lost = 32 * kEps * (std::abs(gate) + 1) * (std::abs(up) + 1);
      ASSERT_NEAR(got[r * kWidth + i], want, HalfUlp(dtype) * std::abs(want) + lost)
          << r << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, ActivateTest,
    testing::Combine(testing::Values(ActivationKind::kSilu, ActivationKind::kGeluTanh,
                                     ActivationKind::kGeluErf, ActivationKind::kRelu),
                     testing::Bool(), testing::Values(Dtype::kFp16, Dtype::kBf16)));

// --- logits

TEST_F(StepOps, LogitsAreCappedAndChecked) {
  constexpr int kRows = 3, kVocab = 2500;
  std::vector<float> y = Rounded(RandomFloats(kRows * kVocab, 1, 20), Dtype::kFp16);
  y[kVocab + 7] = INFINITY;
  const std::vector<float> bias = RandomFloats(kVocab, 2);
  const DeviceVector<uint16_t> d_y(Encoded(y, Dtype::kFp16));
  const DeviceVector<float> d_bias(bias), logits(std::vector<float>(kRows * kVocab, NAN));
  const DeviceVector<RowResult> results{std::vector<RowResult>(kRows)};
  const DeviceVector<RowChoice> choices{std::vector<RowChoice>(kRows)};
  FinishLogitsArgs args{};
  args.y = d_y.data(), args.bias = d_bias.data(), args.softcap = 30, args.logits = logits.data();
  args.results = results.data(), args.choices = choices.data();
  args.rows = kRows, args.vocab = kVocab, args.dtype = Dtype::kFp16;
  Launched(FinishLogits(args, {}));
  for (int r = 0; r < kRows; ++r) EXPECT_EQ(results.ToHost()[r].not_finite, r == 1) << r;
  const std::vector<float> got = logits.ToHost();
  for (int i = 0; i < kRows * kVocab; ++i) {
    const double want = 30 * std::tanh((y[i] + double{bias[i % kVocab]}) / 30);
    ASSERT_NEAR(got[i], want, 16 * kEps * 30) << i;
  }
}

// The tokens of `y`'s rows.
std::vector<int32_t> Choose(const std::vector<float>& y, int vocab,
                            const std::vector<RowChoice>& wanted) {
  const int rows = static_cast<int>(wanted.size());
  const DeviceVector<uint16_t> d_y(Encoded(y, Dtype::kFp16));
  const DeviceVector<float> logits(std::vector<float>(y.size(), NAN));
  const DeviceVector<RowResult> results{std::vector<RowResult>(rows, RowResult{0, -1})};
  const DeviceVector<RowChoice> choices(wanted);
  const DeviceVector<LogitChunk> chunks{std::vector<LogitChunk>(rows * LogitChunks(vocab))};
  FinishLogitsArgs finish{};
  finish.y = d_y.data(), finish.logits = logits.data(), finish.results = results.data();
  finish.choices = choices.data(), finish.chunks = chunks.data();
  finish.rows = rows, finish.vocab = vocab, finish.dtype = Dtype::kFp16;
  Launched(FinishLogits(finish, {}));
  Launched(ChooseTokens({logits.data(), chunks.data(), choices.data(), results.data(), rows, vocab},
                        {}));
  std::vector<int32_t> tokens;
  for (const RowResult& result : results.ToHost()) tokens.push_back(result.token);
  return tokens;
}

TEST_F(StepOps, TheLargestLogitOrTheFirstOfEquals) {
  constexpr int kVocab = 5000;
  std::vector<float> y = Rounded(RandomFloats(4 * kVocab, 3), Dtype::kFp16);
  y[4999] = 50;
  y[kVocab + 1023] = y[kVocab + 1024] = y[kVocab + 3000] = 50;
  y[2 * kVocab] = 50;
  const RowChoice greedy = {0.5, 0, 1};
  EXPECT_EQ(Choose(y, kVocab, {greedy, greedy, greedy, {}}),
            (std::vector<int32_t>{4999, 1023, 0, -1}));
}

// The share of the weights before and up to the token must hold u, up to what fp32 weights (each a
// few ulp) and their sums can move it.
TEST_F(StepOps, TokensAreDrawnWithTheirSoftmax) {
  constexpr int kRows = ManyOf(200);
  for (const int vocab : {7, 1024, 5000, 128256}) {
    for (const float temperature : {0.3f, 1.0f, 100.0f}) {
      const std::vector<float> one = Rounded(RandomFloats(vocab, 4, 3), Dtype::kFp16);
      std::vector<float> y;
      std::vector<RowChoice> choices;
      for (int r = 0; r < kRows; ++r) {
        y.insert(y.end(), one.begin(), one.end());
        choices.push_back({r / static_cast<double>(kRows), temperature, 1});
      }
      choices.back().u = 1 - 0x1p-53;
      const std::vector<int32_t> tokens = Choose(y, vocab, choices);
      std::vector<double> running = {0};
      for (const float v : one) running.push_back(running.back() + std::exp(v / temperature));
      for (int r = 0; r < kRows; ++r) {
        ASSERT_GE(tokens[r], 0);
        ASSERT_LT(tokens[r], vocab);
        EXPECT_LE(running[tokens[r]] / running.back(), choices[r].u + 1e-5) << vocab << " " << r;
        EXPECT_GE(running[tokens[r] + 1] / running.back(), choices[r].u - 1e-5)
            << vocab << " " << r;
      }
    }
  }
}

// --- loading

class RepackTest : public GpuTest,
                   public testing::WithParamInterface<std::tuple<int, int, bool>> {};

TEST_P(RepackTest, MakesTheBytesThatTheHostMakes) {
  const auto [bits, group, asymmetric] = GetParam();
  constexpr int kRows = 100, kCols = 384;
  std::mt19937 rng(5);
  const PackedInt w = RandomPacked(kRows, kCols, group, bits, asymmetric, rng);
  const auto want = RepackForGpu(w.view());
  ASSERT_TRUE(want.ok()) << want.status();
  const DeviceVector<uint8_t> codes(w.codes), zeros(w.zeros),
      out(std::vector<uint8_t>(want->size(), 0xaa));
  const DeviceVector<uint16_t> scales(w.scales);
  const int64_t groups = w.view().groups(), code_row = w.codes.size() / kRows,
                zero_row = w.zeros.size() / kRows;
  for (const auto& [first, rows] : {std::pair{0, 64}, std::pair{64, 36}}) {
    RepackArgs args{};
    args.codes = codes.data() + first * code_row, args.scales = scales.data() + first * groups;
    args.zeros = asymmetric ? zeros.data() + first * zero_row : nullptr;
    args.shape = *GpuShape(w.view()), args.first_row = first, args.rows = rows;
    args.out = out.data();
    Launched(RepackOnDevice(args, {}));
  }
  EXPECT_EQ(out.ToHost(), *want);
}

INSTANTIATE_TEST_SUITE_P(Formats, RepackTest,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(32, 64, 128, 384), testing::Bool()));

TEST_F(StepOps, ConversionRoundsToNearest) {
  const std::vector<float> in = RandomFloats(5000, 1);
  const DeviceVector<float> d_in(in);
  const DeviceVector<uint16_t> brain(Encoded(in, Dtype::kBf16)), out(std::vector<uint16_t>(5000));
  Launched(Convert(d_in.data(), StoredFloat::kFp32, 5000, out.data(), Dtype::kFp16, {}));
  EXPECT_EQ(out.ToHost(), Encoded(in, Dtype::kFp16));
  Launched(Convert(brain.data(), StoredFloat::kBf16, 5000, out.data(), Dtype::kFp16, {}));
  EXPECT_EQ(out.ToHost(), Encoded(Rounded(in, Dtype::kBf16), Dtype::kFp16));
}

}  // namespace
}  // namespace babai::cuda
