// Attention over the paged cache against the sums it stands for.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "device.h"
#include "kernels/cuda/attention.h"
#include "values.h"

namespace babai::cuda {
namespace {

struct Case {
  int heads, kv_heads, dim;
  int window;
  float softcap;
  Dtype dtype;
};

struct Sequence {
  int start, rows;  // rows new tokens behind `start` cached ones
};

// A cache of random keys and values with its sequences' blocks in a random order.
class Problem {
 public:
  Problem(const Case& c, std::vector<Sequence> sequences)
      : c_(c), sequences_(std::move(sequences)) {
    cache_ = {nullptr, nullptr, c.kv_heads, c.dim, kBlock};
    int blocks = 0;
    for (const Sequence& s : sequences_) {
      table_.push_back(blocks);
      blocks += (s.start + s.rows + kBlock - 1) / kBlock, rows_ += s.rows;
    }
    tables_.resize(blocks);
    std::iota(tables_.begin(), tables_.end(), 1);
    std::shuffle(tables_.begin(), tables_.end(), std::mt19937(9));
    const int64_t values = (blocks + 1) * cache_.block_values();
    k_ = Rounded(RandomFloats(values, 1), Dtype::kFp16);
    v_ = Rounded(RandomFloats(values, 2), Dtype::kFp16);
    q_ = Rounded(RandomFloats(int64_t{rows_} * Stride(), 3), c.dtype);
  }

  int rows() const { return rows_; }

  // All sequences by one kernel, into rows of heads * dim.
  std::vector<uint16_t> Run(bool prefill, int splits = kMostDecodeSplits,
                            int most_splits = kMostDecodeSplits, int sms = 132) const {
    const DeviceVector<uint16_t> k(Encoded(k_, Dtype::kFp16)), v(Encoded(v_, Dtype::kFp16)),
        q(Encoded(q_, c_.dtype)), out(std::vector<uint16_t>(rows_ * c_.heads * c_.dim, 0x7fff));
    std::vector<AttentionSequence> list;
    std::vector<PrefillTile> tiles;
    int row = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      list.push_back({row, sequences_[s].rows, sequences_[s].start, table_[s]});
      row += sequences_[s].rows;
      for (int t = 0; t < PrefillTiles(sequences_[s].rows, c_.heads, c_.kv_heads); ++t) {
        tiles.push_back({static_cast<int>(s), t});
      }
    }
    const DeviceVector<AttentionSequence> d_list(list);
    const DeviceVector<PrefillTile> d_tiles(tiles);
    const DeviceVector<int32_t> d_tables(tables_);
    const int count = static_cast<int>(list.size());
    const DeviceVector<uint8_t> workspace(
        std::vector<uint8_t>(DecodeWorkspaceBytes(count, c_.heads, c_.dim), 0));
    AttentionArgs args{};
    args.q = {q.data(), Stride()}, args.out = out.data(), args.cache = cache_;
    args.cache.k = reinterpret_cast<__half*>(k.data());
    args.cache.v = reinterpret_cast<__half*>(v.data());
    args.sequences = d_list.data(), args.tables = d_tables.data(), args.heads = c_.heads;
    args.scale = Scale(), args.softcap = c_.softcap, args.window = c_.window, args.dtype = c_.dtype;
    for (int again = 0; again < 2; ++again) {  // the counters are left as they were found
      const cudaError_t error =
          prefill ? PrefillAttention(args, d_tiles.data(), static_cast<int>(tiles.size()), {})
                  : DecodeAttention(args,
                                    {count, splits, most_splits, workspace.data(), count, sms}, {});
      EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    }
    return out.ToHost();
  }

  // Weights are rounded to fp16 before they multiply v (relative 2^-11, random signs, but bounded
  // here by the sum of magnitudes), q to fp16 where it comes in bf16 (exact: bf16 of this size
  // fits), scores carry fp32 sums; and the result is rounded.
  void Check(const std::vector<uint16_t>& encoded) const {
    const std::vector<float> got = Decoded(encoded, c_.dtype);
    const int group = c_.heads / c_.kv_heads;
    int row = 0;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      for (int t = 0; t < sequences_[s].rows; ++t, ++row) {
        const int p = sequences_[s].start + t;
        for (int h = 0; h < c_.heads; ++h) {
          std::vector<double> want(c_.dim), magnitude(c_.dim);
          Attend(s, p, row, h, h / group, want, magnitude);
          for (int d = 0; d < c_.dim; ++d) {
            const double close =
                (0x1p-11 + 1e-5) * magnitude[d] + HalfUlp(c_.dtype) * std::abs(want[d]) + 1e-7;
            ASSERT_NEAR(got[(int64_t{row} * c_.heads + h) * c_.dim + d], want[d], close)
                << "sequence " << s << " position " << p << " head " << h << " feature " << d;
          }
        }
      }
    }
  }

 private:
  static constexpr int kBlock = 16;

  int Stride() const { return c_.heads * c_.dim + 24; }  // rows of a merged product
  float Scale() const { return 1 / std::sqrt(static_cast<float>(c_.dim)); }

  void Attend(size_t s, int p, int row, int h, int kv_head, std::vector<double>& want,
              std::vector<double>& magnitude) const {
    const int first = c_.window > 0 ? std::max(0, p - c_.window + 1) : 0;
    std::vector<double> scores;
    for (int key = first; key <= p; ++key) {
      double sum = 0;
      for (int d = 0; d < c_.dim; ++d) {
        sum += double{q_[int64_t{row} * Stride() + h * c_.dim + d]} * k_[At(s, key, kv_head) + d];
      }
      sum *= Scale();
      scores.push_back(c_.softcap > 0 ? c_.softcap * std::tanh(sum / c_.softcap) : sum);
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - top);
    for (int key = first; key <= p; ++key) {
      for (int d = 0; d < c_.dim; ++d) {
        const double term = scores[key - first] / total * v_[At(s, key, kv_head) + d];
        want[d] += term, magnitude[d] += std::abs(term);
      }
    }
  }
  int64_t At(size_t s, int key, int kv_head) const {
    const int64_t block = tables_[table_[s] + key / kBlock];
    return cache_.RowAt(block * kBlock + key % kBlock, kv_head);
  }

  const Case c_;
  const std::vector<Sequence> sequences_;
  KvCache cache_;
  int rows_ = 0;
  std::vector<int32_t> table_, tables_;
  std::vector<float> k_, v_, q_;
};

class AttentionTest : public GpuTest, public testing::WithParamInterface<Case> {};

TEST_P(AttentionTest, DecodeEqualsItsDefinition) {
  // One key; one tile; ends of tiles; several splits.
  const Problem problem(GetParam(), {{0, 1}, {100, 1}, {127, 1}, {128, 1}, {300, 1}, {1000, 1}});
  problem.Check(problem.Run(/*prefill=*/false, DecodeSplits(1001)));
  problem.Check(problem.Run(/*prefill=*/false));
}

TEST_P(AttentionTest, FewerSplitsGiveTheSame) {
  const Problem problem(GetParam(), {{0, 1}, {63, 1}, {64, 1}, {300, 1}, {1000, 1}});
  for (const int most : {1, 2, 3}) {
    for (const int sms : {0, 1000}) {  // rings of three and of four
      problem.Check(problem.Run(/*prefill=*/false, DecodeSplits(1001), most, sms));
    }
  }
}

TEST_P(AttentionTest, PrefillEqualsItsDefinition) {
  const Problem problem(GetParam(), {{0, 70}, {63, 1}, {0, 1}, {200, 65}, {17, 130}, {330, 90}});
  problem.Check(problem.Run(/*prefill=*/true));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, AttentionTest,
    testing::Values(Case{4, 2, 16, 0, 0, Dtype::kFp16}, Case{9, 3, 64, 0, 0, Dtype::kFp16},
                    Case{4, 4, 80, 0, 0, Dtype::kBf16}, Case{8, 2, 128, 0, 0, Dtype::kFp16},
                    Case{4, 1, 128, 50, 0, Dtype::kBf16}, Case{2, 1, 256, 150, 20, Dtype::kBf16},
                    Case{40, 2, 72, 0, 0, Dtype::kFp16}, Case{4, 2, 128, 130, 30, Dtype::kFp16},
                    Case{6, 2, 64, 70, 0, Dtype::kBf16}),
    [](const auto& info) {
      const Case& c = info.param;
      return "heads" + std::to_string(c.heads) + "of" + std::to_string(c.kv_heads) + "x" +
             std::to_string(c.dim) + "window" + std::to_string(c.window);
    });

// --- what attention of decodes finishes itself

// All of a block's keys at once; rings of four and of three.
const DecodePlan kWays[] = {{.most_splits = kMostDecodeSplits, .sms = 132},
                            {.most_splits = 1, .sms = 1000},
                            {.most_splits = 1, .sms = 0}};

struct FinishCase {
  int heads, kv_heads, dim, pairs;
  bool biases, norms;
  int window;
};

class FinishingAttentionTest : public GpuTest, public testing::WithParamInterface<FinishCase> {};

// The same arithmetic in another kernel: q, k and v may differ by the order in which the compiler
// contracts two products, an ulp of fp16 once stored; and a result by what that moves the scores.
TEST_P(FinishingAttentionTest, EqualsFinishQkvBeforeIt) {
  const FinishCase c = GetParam();
  constexpr int kBlock = 16;
  const std::vector<int> starts = {0, 1, 100, 127, 128, 300, 700};
  const int count = static_cast<int>(starts.size());
  const int stride = (c.heads + 2 * c.kv_heads) * c.dim;
  std::vector<AttentionSequence> list;
  std::vector<int32_t> tables, slots;
  for (int s = 0; s < count; ++s) {
    list.push_back({s, 1, starts[s], static_cast<int32_t>(tables.size())});
    const int blocks = starts[s] / kBlock + 1;
    for (int b = 0; b < blocks; ++b) tables.push_back(static_cast<int32_t>(tables.size()) + 1);
    slots.push_back(tables.back() * kBlock + starts[s] % kBlock);
  }
  KvCache cache{nullptr, nullptr, c.kv_heads, c.dim, kBlock};
  const int64_t values = (static_cast<int64_t>(tables.size()) + 1) * cache.block_values();
  const std::vector<uint16_t> old_k = Encoded(RandomFloats(values, 1), Dtype::kFp16);
  const std::vector<uint16_t> old_v = Encoded(RandomFloats(values, 2), Dtype::kFp16);
  const std::vector<uint16_t> merged = Encoded(RandomFloats(count * stride, 3), Dtype::kFp16);
  const DeviceVector<float> biases(RandomFloats(stride, 4)), norms(RandomFloats(2 * c.dim, 5));
  std::vector<float2> turns(count * c.pairs);
  for (int i = 0; i < count * c.pairs; ++i) turns[i] = {std::cos(0.1f * i), std::sin(0.1f * i)};
  turns.resize(turns.size() + 1);
  const DeviceVector<float2> angles(turns);
  const DeviceVector<AttentionSequence> d_list(list);
  const DeviceVector<int32_t> d_tables(tables), d_slots(slots);
  const DeviceVector<uint8_t> workspace(
      std::vector<uint8_t>(DecodeWorkspaceBytes(count, c.heads, c.dim), 0));

  const auto run = [&](bool inside, const DecodePlan& how, std::vector<uint16_t>* k_after,
                       std::vector<uint16_t>* v_after) {
    const DeviceVector<uint16_t> k(old_k), v(old_v), qkv(merged);
    const DeviceVector<uint16_t> out(std::vector<uint16_t>(count * c.heads * c.dim, 0x7fff));
    cache.k = reinterpret_cast<__half*>(k.data()), cache.v = reinterpret_cast<__half*>(v.data());
    FinishQkvArgs finish{};
    finish.q = qkv.data(), finish.q_stride = stride;
    finish.k = {qkv.data() + c.heads * c.dim, stride};
    finish.v = {qkv.data() + (c.heads + c.kv_heads) * c.dim, stride};
    if (c.biases) {
      finish.q_bias = biases.data(), finish.k_bias = biases.data() + c.heads * c.dim;
      finish.v_bias = finish.k_bias + c.kv_heads * c.dim;
    }
    if (c.norms) finish.q_norm = norms.data(), finish.k_norm = norms.data() + c.dim;
    if (c.pairs > 0) finish.angles = angles.data();
    finish.pairs = c.pairs, finish.angle_stride = c.pairs, finish.slots = d_slots.data();
    finish.cache = cache, finish.count = count, finish.heads = c.heads, finish.eps = 1e-6f;
    AttentionArgs args{};
    args.q = {qkv.data(), stride}, args.out = out.data(), args.cache = cache;
    args.sequences = d_list.data(), args.tables = d_tables.data(), args.heads = c.heads;
    args.scale = 1 / std::sqrt(static_cast<float>(c.dim)), args.window = c.window;
    if (!inside) {
      EXPECT_EQ(FinishQkv(finish, {}), cudaSuccess);
    }
    const DecodePlan plan = {
        count, DecodeSplits(starts.back() + 1), how.most_splits, workspace.data(), count, how.sms};
    EXPECT_EQ(DecodeAttention(args, plan, {}, inside ? &finish : nullptr), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    *k_after = k.ToHost(), *v_after = v.ToHost();
    return out.ToHost();
  };
  for (const DecodePlan& how : kWays) {
    SCOPED_TRACE(testing::Message() << how.most_splits << " splits, " << how.sms << " SMs");
    std::vector<uint16_t> k_want, v_want, k_got, v_got;
    const std::vector<float> want = Decoded(run(false, how, &k_want, &v_want), Dtype::kFp16);
    const std::vector<float> got = Decoded(run(true, how, &k_got, &v_got), Dtype::kFp16);
    EXPECT_EQ(v_got, v_want);
    EXPECT_NE(v_got, old_v);
    const std::vector<float> keys = Decoded(k_got, Dtype::kFp16),
                             like = Decoded(k_want, Dtype::kFp16);
    for (size_t i = 0; i < keys.size(); ++i) {
      ASSERT_NEAR(keys[i], like[i], 2 * 0x1p-11 * std::abs(like[i]) + 1e-6) << i;
    }
    // Scores of normal values reach a few tens; an ulp of q or k moves them by 2^-10 of a term.
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], 0x1p-7 * (1 + std::abs(want[i]))) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, FinishingAttentionTest,
                         testing::Values(FinishCase{8, 2, 128, 64, false, false, 0},
                                         FinishCase{4, 4, 64, 32, true, true, 0},
                                         FinishCase{9, 3, 64, 32, false, false, 50},
                                         FinishCase{4, 2, 80, 16, true, false, 0},
                                         FinishCase{40, 2, 72, 36, false, true, 0},
                                         FinishCase{4, 1, 256, 128, false, true, 150},
                                         FinishCase{12, 12, 64, 0, true, false, 0}),
                         [](const auto& info) {
                           const FinishCase& c = info.param;
                           return "heads" + std::to_string(c.heads) + "of" +
                                  std::to_string(c.kv_heads) + "x" + std::to_string(c.dim);
                         });

class Attention : public GpuTest {};

TEST_F(Attention, LongContextsShareTheSplits) {
  const Problem problem({4, 1, 64, 0, 0, Dtype::kFp16}, {{9000, 1}, {4095, 1}, {4096, 1}});
  problem.Check(problem.Run(/*prefill=*/false));
}

TEST_F(Attention, TwoRunsAreBitIdentical) {
  const Case c{8, 2, 64, 0, 0, Dtype::kFp16};
  const Problem batch(c, {{700, 1}, {3000, 1}});
  EXPECT_EQ(batch.Run(/*prefill=*/false), batch.Run(/*prefill=*/false));
  EXPECT_EQ(batch.Run(/*prefill=*/true), batch.Run(/*prefill=*/true));
}

}  // namespace
}  // namespace babai::cuda
