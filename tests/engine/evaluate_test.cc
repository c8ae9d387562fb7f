#include "server/engine/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kVocab = 40;

// Logits are a table's row of (token, position): what each prediction must be is known.
class TableRunner final : public Runner {
 public:
  TableRunner(uint32_t seed, int64_t context, bool add_bos = false) {
    config_.vocab = kVocab;
    config_.max_positions = context;
    config_.add_bos = add_bos;
    config_.bos = 1;
    options_ = EvaluationRunnerOptions(config_, context, Numerics::kReference);
    options_.max_step_tokens = 7;  // several steps a window
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 3);
    table_.resize(kVocab * context * kVocab);
    for (float& l : table_) l = normal(random);
  }
  const float* Row(int32_t token, int32_t position) const {
    return table_.data() + (position * kVocab + token) * kVocab;
  }
  const ModelConfig& config() const override { return config_; }
  const RunnerOptions& options() const override { return options_; }
  int64_t weight_bytes() const override { return 0; }
  int64_t kv_bytes() const override { return 0; }
  void CopyKvBlock(int32_t, int32_t) override {}
  absl::Status Step(const StepBatch& batch, float* logits) override {
    for (size_t r = 0; r < batch.logits_rows.size(); ++r) {
      const int32_t t = batch.logits_rows[r];
      const float* row = Row(batch.tokens[t], batch.positions[t]);
      std::copy(row, row + kVocab, logits + r * kVocab);
    }
    return absl::OkStatus();
  }

 private:
  ModelConfig config_;
  RunnerOptions options_;
  std::vector<float> table_;
};

std::vector<double> LogSoftmax(const float* logits) {
  double total = 0;
  for (int64_t i = 0; i < kVocab; ++i) total += std::exp(double{logits[i]});
  std::vector<double> p(kVocab);
  for (int64_t i = 0; i < kVocab; ++i) p[i] = logits[i] - std::log(total);
  return p;
}

EvaluateRequest Request(int64_t tokens, int64_t context) {
  EvaluateRequest request;
  std::mt19937 random(1);
  for (int64_t i = 0; i < tokens; ++i) request.tokens.push_back(random() % kVocab);
  request.context = context;
  return request;
}

// The protocol, straight from its description.
TEST(EvaluateTest, FollowsTheProtocol) {
  for (const bool add_bos : {false, true}) {
    constexpr int64_t kContext = 20;
    TableRunner model(1, kContext, add_bos), reference(2, kContext, add_bos);
    const EvaluateRequest request = Request(5 * kContext + 13, kContext);  // a tail to drop
    ThreadPool pool(2);
    const EvaluateResult got = *EvaluateRunners(model, &reference, request, pool, nullptr, nullptr);

    std::vector<double> nll, reference_nll, kl;
    double agreed = 0;
    for (int64_t w = 0; w < 5; ++w) {
      for (int64_t i = 0; i + 1 < kContext; ++i) {
        const int32_t input = add_bos && i == 0 ? 1 : request.tokens[w * kContext + i];
        const int32_t target = request.tokens[w * kContext + i + 1];
        const std::vector<double> p = LogSoftmax(model.Row(input, i));
        const std::vector<double> q = LogSoftmax(reference.Row(input, i));
        nll.push_back(-p[target]);
        reference_nll.push_back(-q[target]);
        kl.push_back(0);
        for (int64_t v = 0; v < kVocab; ++v) kl.back() += std::exp(q[v]) * (q[v] - p[v]);
        agreed += std::max_element(p.begin(), p.end()) - p.begin() ==
                  std::max_element(q.begin(), q.end()) - q.begin();
      }
    }
    const double n = nll.size();
    std::sort(kl.begin(), kl.end());
    // Logits and weights are fp32: some 1e-6 relative.
    const auto near = [](double want) { return testing::DoubleNear(want, 1e-5 * want); };
    EXPECT_EQ(got.windows, 5);
    EXPECT_EQ(got.tokens, 5 * 19);
    EXPECT_THAT(got.mean_nll, near(std::accumulate(nll.begin(), nll.end(), 0.0) / n));
    EXPECT_THAT(got.perplexity, near(std::exp(got.mean_nll)));
    EXPECT_THAT(std::log(got.reference_perplexity),
                near(std::accumulate(reference_nll.begin(), reference_nll.end(), 0.0) / n));
    EXPECT_THAT(got.mean_kl, near(std::accumulate(kl.begin(), kl.end(), 0.0) / n));
    EXPECT_THAT(got.kl_max, near(kl.back()));
    EXPECT_THAT(got.kl_p99, near(kl[94]));  // ceil(0.99 * 95) = 95: the largest
    EXPECT_DOUBLE_EQ(got.top1_agreement, agreed / n);
  }
}

TEST(EvaluateTest, AModelDoesNotDivergeFromItself) {
  TableRunner model(1, 30), same(1, 30);
  ThreadPool pool(1);
  const EvaluateResult r = *EvaluateRunners(model, &same, Request(300, 30), pool, nullptr, nullptr);
  EXPECT_LT(r.kl_max, 1e-6);
  EXPECT_EQ(r.top1_agreement, 1);
  EXPECT_EQ(r.perplexity, r.reference_perplexity);
}

TEST(EvaluateTest, StopsWhenAsked) {
  TableRunner model(1, 30);
  ThreadPool pool(1);
  int polled = 0;
  double last = 0;
  const auto result = EvaluateRunners(
      model, nullptr, Request(300, 30), pool, [&](double done) { last = done; },
      [&] { return ++polled > 3; });
  EXPECT_TRUE(absl::IsCancelled(result.status()));
  EXPECT_GT(last, 0);
  EXPECT_LT(last, 1);
}

TEST(EvaluateTest, ReportsProgressToTheEnd) {
  TableRunner model(1, 30);
  ThreadPool pool(1);
  double last = 0;
  EvaluateRequest request = Request(300, 30);
  request.max_windows = 2;
  const EvaluateResult r = *EvaluateRunners(
      model, nullptr, request, pool, [&](double done) { last = done; }, nullptr);
  EXPECT_EQ(r.windows, 2);
  EXPECT_FALSE(r.has_reference);
  EXPECT_EQ(last, 1);
}

TEST(CheckEvaluationTest, NamesTheField) {
  const TableRunner model(1, 30);
  const auto field = [&](EvaluateRequest request) {
    return FieldOf(CheckEvaluation(request, model.config()));
  };
  EXPECT_TRUE(CheckEvaluation(Request(30, 30), model.config()).ok());
  EXPECT_EQ(field(Request(100, 1)), "context");
  EXPECT_EQ(field(Request(100, 31)), "context");
  EXPECT_EQ(field(Request(29, 30)), "tokens");
  EvaluateRequest request = Request(100, 30);
  request.tokens[50] = kVocab;
  EXPECT_EQ(field(request), "tokens");
  request = Request(100, 30);
  request.max_windows = -1;
  EXPECT_EQ(field(request), "max_windows");
}

}  // namespace
}  // namespace babai
