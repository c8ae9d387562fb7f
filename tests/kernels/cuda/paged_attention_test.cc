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
  std::vector<uint16_t> Run(bool prefill, int most_splits = kMostDecodeSplits) const {
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
                  : DecodeAttention(args, {count, most_splits, workspace.data(), count}, {});
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
  problem.Check(problem.Run(/*prefill=*/false));
}

TEST_P(AttentionTest, PrefillEqualsItsDefinition) {
  const Problem problem(GetParam(), {{0, 70}, {63, 1}, {0, 1}, {200, 65}, {17, 130}});
  problem.Check(problem.Run(/*prefill=*/true));
}

INSTANTIATE_TEST_SUITE_P(
    Cases, AttentionTest,
    testing::Values(Case{4, 2, 16, 0, 0, Dtype::kFp16}, Case{9, 3, 64, 0, 0, Dtype::kFp16},
                    Case{4, 4, 80, 0, 0, Dtype::kBf16}, Case{8, 2, 128, 0, 0, Dtype::kFp16},
                    Case{4, 1, 128, 50, 0, Dtype::kBf16}, Case{2, 1, 256, 150, 20, Dtype::kBf16},
                    Case{40, 2, 72, 0, 0, Dtype::kFp16}),
    [](const auto& info) {
      const Case& c = info.param;
      return "heads" + std::to_string(c.heads) + "of" + std::to_string(c.kv_heads) + "x" +
             std::to_string(c.dim) + "window" + std::to_string(c.window);
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
