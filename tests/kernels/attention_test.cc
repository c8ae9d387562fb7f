#include "kernels/cpu/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "tests/kernels/kernel_fixtures.h"

namespace babai::cpu {
namespace {

struct Config {
  int heads, kv_heads, head_dim, block_size;
  FloatType type = FloatType::kF16;
  float softcap = 0;
  int64_t window = 0;
};

// The keys and values of one sequence, as they are stored (rounded to the cache's type).
struct History {
  int64_t length;
  std::vector<float> q, k, v;  // [length, heads or kv_heads, head_dim]
  std::vector<int32_t> blocks;
};

// Several sequences in one cache whose blocks are dealt out in no order.
class Cache {
 public:
  Cache(const Config& c, const std::vector<int64_t>& lengths) : config_(c) {
    shape_ = {c.kv_heads, c.head_dim, c.block_size, c.type};
    int64_t count = 1;  // one block that no sequence owns
    for (int64_t n : lengths) count += (n + c.block_size - 1) / c.block_size;
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(11));
    keys_ = AlignedBuffer(count * KvKeyBlockBytes(shape_));
    values_ = AlignedBuffer(count * KvValueBlockBytes(shape_));
    // What was never written must never be read into a result: NaNs everywhere.
    std::memset(keys_.data(), 0xff, keys_.size());
    std::memset(values_.data(), 0xff, values_.size());
    for (int64_t n : lengths) AddHistory(n, order);
  }

  const Config& config() const { return config_; }
  const KvShape& shape() const { return shape_; }
  const History& history(int i) const { return histories_[i]; }
  PagedKv kv() { return {shape_, keys_.data(), values_.data()}; }

  SequenceRows Rows(int i, int64_t start, int64_t rows) const {
    return {histories_[i].blocks.data(), start, rows};
  }

  void Append(const std::vector<std::pair<int, SequenceRows>>& parts, ThreadPool& pool) {
    std::vector<SequenceRows> sequences;
    std::vector<float> k, v;
    const int64_t width = int64_t{config_.kv_heads} * config_.head_dim;
    for (const auto& [i, rows] : parts) {
      const History& h = histories_[i];
      sequences.push_back(rows);
      k.insert(k.end(), &h.k[rows.start * width], &h.k[(rows.start + rows.rows) * width - 1] + 1);
      v.insert(v.end(), &h.v[rows.start * width], &h.v[(rows.start + rows.rows) * width - 1] + 1);
    }
    AppendKv(kv(), sequences, k.data(), v.data(), width, pool);
  }

  // Attention of the given rows; one result row after another.
  std::vector<float> Attend(const std::vector<std::pair<int, SequenceRows>>& parts,
                            ThreadPool& pool) {
    const int64_t width = int64_t{config_.heads} * config_.head_dim, ld = width + 3;
    std::vector<SequenceRows> sequences;
    std::vector<float> q;
    for (const auto& [i, rows] : parts) {
      sequences.push_back(rows);
      for (int64_t r = rows.start; r < rows.start + rows.rows; ++r) {
        const float* row = &histories_[i].q[r * width];
        q.insert(q.end(), row, row + width);
        q.resize(q.size() + 3, std::nanf(""));
      }
    }
    const int64_t rows = static_cast<int64_t>(q.size()) / ld;
    std::vector<float> out(rows * width, std::nanf(""));
    AlignedBuffer scratch(AttentionScratchBytes(shape_, 2048, pool.threads()));
    const AttentionArgs args = {q.data(),        ld,
                                out.data(),      width,
                                config_.heads,   Scale(),
                                config_.softcap, config_.window,
                                scratch.data(),  scratch.size()};
    PagedAttention(kv(), sequences, args, pool);
    return out;
  }

  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(config_.head_dim)); }

 private:
  void AddHistory(int64_t n, std::vector<int32_t>& order) {
    const uint32_t seed = 100 * (histories_.size() + 1);
    History h;
    h.length = n;
    h.q = RandomFloats(n * config_.heads * config_.head_dim, seed, 2.0f);
    h.k = RandomFloats(n * config_.kv_heads * config_.head_dim, seed + 1);
    h.v = RandomFloats(n * config_.kv_heads * config_.head_dim, seed + 2);
    for (auto* values : {&h.k, &h.v}) {
      if (config_.type == FloatType::kF16) {
        for (float& f : *values) f = HalfToFloat(FloatToHalf(f));
      }
    }
    for (int64_t b = 0; b < n; b += config_.block_size) {
      h.blocks.push_back(order.back());
      order.pop_back();
    }
    histories_.push_back(std::move(h));
  }

  Config config_;
  KvShape shape_;
  std::vector<History> histories_;
  AlignedBuffer keys_, values_;
};

struct Want {
  std::vector<double> value, tolerance;  // [head_dim]
};

// Softmax in double. In fp32 a score moves by (head_dim + 2) eps sum|q k| scale, and its
// exponential by twice that (numerator and sum) plus 4 ulp of the exponential; sums over n keys add
// n eps each.
Want Reference(const Config& c, float scale, const History& h, int64_t position, int head) {
  const int64_t d = c.head_dim, kv_head = head / (c.heads / c.kv_heads);
  const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
  const int64_t n = position - first + 1;
  std::vector<double> scores(n);
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    double dot = 0, magnitude = 0;
    for (int64_t e = 0; e < d; ++e) {
      const double term = double{h.q[(position * c.heads + head) * d + e]} *
                          h.k[((first + i) * c.kv_heads + kv_head) * d + e];
      dot += term;
      magnitude += std::abs(term);
    }
    scores[i] = dot * scale;
    if (c.softcap > 0) scores[i] = c.softcap * std::tanh(scores[i] / c.softcap);
    worst = std::max(worst, (d + 2) * kEps * magnitude * scale);
  }
  if (c.softcap > 0) worst += 8 * kEps * c.softcap;
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - max);
  Want want{std::vector<double>(d), std::vector<double>(d)};
  const double relative = 2 * worst + (8 + 2 * n) * kEps;
  for (int64_t e = 0; e < d; ++e) {
    double magnitude = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double term = scores[i] / sum * h.v[((first + i) * c.kv_heads + kv_head) * d + e];
      want.value[e] += term;
      magnitude += std::abs(term);
    }
    want.tolerance[e] = relative * magnitude;
  }
  return want;
}

void ExpectReference(const Cache& cache, int sequence, int64_t position, const float* got) {
  const Config& c = cache.config();
  for (int head = 0; head < c.heads; ++head) {
    const Want want = Reference(c, cache.Scale(), cache.history(sequence), position, head);
    for (int e = 0; e < c.head_dim; ++e) {
      ASSERT_NEAR(got[head * c.head_dim + e], want.value[e], want.tolerance[e])
          << "position " << position << " head " << head << " feature " << e;
    }
  }
}

class AttentionTest : public testing::TestWithParam<Config> {};

TEST_P(AttentionTest, PrefillEqualsItsDefinitionUpToRounding) {
  const int64_t width = int64_t{GetParam().heads} * GetParam().head_dim;
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    SCOPED_TRACE(IsaName(isa));
    const WithIsa with(isa);
    Cache cache(GetParam(), {37, 161});
    const std::vector<std::pair<int, SequenceRows>> parts = {{0, cache.Rows(0, 0, 37)},
                                                             {1, cache.Rows(1, 0, 161)}};
    cache.Append(parts, pool);
    const std::vector<float> out = cache.Attend(parts, pool);
    for (int64_t p = 0; p < 37; p += 6) ExpectReference(cache, 0, p, &out[p * width]);
    for (int64_t p : {0, 1, 15, 16, 17, 63, 127, 128, 129, 160}) {
      ExpectReference(cache, 1, p, &out[(37 + p) * width]);
    }
  }
}

// Prefill in chunks, decode alone, decode in a batch, more threads, split keys: the same bits.
TEST_P(AttentionTest, ARowsResultDoesNotDependOnTheBatch) {
  const int64_t width = int64_t{GetParam().heads} * GetParam().head_dim;
  const int64_t n = 300, other = 45;
  ThreadPool one(1), two(2), three(3);
  for (Isa isa : SupportedIsas()) {
    SCOPED_TRACE(IsaName(isa));
    const WithIsa with(isa);
    Cache cache(GetParam(), {n, other});
    cache.Append({{0, cache.Rows(0, 0, n)}}, two);
    for (int64_t p = 0; p < other; ++p) cache.Append({{1, cache.Rows(1, p, 1)}}, one);
    const std::vector<float> whole = cache.Attend({{0, cache.Rows(0, 0, n)}}, one);
    const auto same = [&](const std::vector<float>& out, int64_t out_row, int64_t p) {
      return std::equal(&whole[p * width], &whole[(p + 1) * width - 1] + 1,
                        out.begin() + out_row * width);
    };
    for (int64_t p : {0, 16, 100, 127, 128, 255, 256, 299}) {
      for (ThreadPool* pool : {&one, &two, &three}) {
        const auto alone = cache.Attend({{0, cache.Rows(0, p, 1)}}, *pool);
        ASSERT_TRUE(same(alone, 0, p)) << p;
        const auto batch =
            cache.Attend({{1, cache.Rows(1, 40, 5)}, {0, cache.Rows(0, p, 1)}}, *pool);
        ASSERT_TRUE(same(batch, 5, p)) << p;
      }
    }
    const auto chunk = cache.Attend({{0, cache.Rows(0, 111, 70)}}, three);
    for (int64_t p = 111; p < 181; ++p) ASSERT_TRUE(same(chunk, p - 111, p)) << p;
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, AttentionTest,
                         testing::Values(Config{9, 3, 64, 16},
                                         Config{4, 4, 64, 32, FloatType::kF32},
                                         Config{8, 1, 128, 16}, Config{2, 1, 256, 48},
                                         Config{4, 2, 40, 16}, Config{3, 3, 5, 16},
                                         Config{4, 2, 64, 16, FloatType::kF16, 30.0f, 0},
                                         Config{4, 2, 64, 16, FloatType::kF16, 0, 50},
                                         Config{40, 1, 16, 16, FloatType::kF32, 0, 7}));

// A sliding window never reads blocks that lie wholly before it: they may have been given back.
TEST(AttentionWindowTest, BlocksBeforeTheWindowAreNotRead) {
  const Config config = {2, 1, 32, 16, FloatType::kF16, 0, 20};
  ThreadPool pool(2);
  for (Isa isa : SupportedIsas()) {
    const WithIsa with(isa);
    Cache cache(config, {200});
    cache.Append({{0, cache.Rows(0, 0, 200)}}, pool);
    const std::vector<float> want = cache.Attend({{0, cache.Rows(0, 199, 1)}}, pool);
    std::vector<int32_t> blocks = cache.history(0).blocks;
    for (int64_t b = 0; b < (199 - 19) / 16; ++b) blocks[b] = 1 << 30;
    const SequenceRows rows = {blocks.data(), 199, 1};
    EXPECT_EQ(cache.Attend({{0, rows}}, pool), want) << IsaName(isa);
  }
}

}  // namespace
}  // namespace babai::cpu
