#include "server/engine/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/row_ops.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kBlockSize = 16;
constexpr int64_t kLogitsBytes = int64_t{64} << 20;

// What one model says about one prediction.
struct Prediction {
  double log_total = 0;  // log of the sum of exp(logit)
  double nll = 0;
  int64_t best = 0;
};

struct Scores {
  std::vector<double> nll, reference_nll, kl;
  int64_t agreed = 0;
};

Prediction Judge(const float* logits, int64_t vocab, int32_t target) {
  Prediction p;
  p.log_total = cpu::LogSumExp(logits, vocab);
  p.nll = p.log_total - logits[target];
  p.best = cpu::ArgMax(logits, vocab);
  return p;
}

// sum x[i] * y[i]; sixteen sums side by side, so that it becomes vector code.
double Dot(const float* x, const float* y, int64_t n) {
  double sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) sums[j] += double{x[i + j]} * y[i + j];
  }
  for (; i < n; ++i) sums[0] += double{x[i]} * y[i];
  return std::accumulate(std::begin(sums), std::end(sums), 0.0);
}

// Both rows are overwritten: logits become log P_ref - log P, reference logits become P_ref.
double Divergence(float* logits, float* reference, int64_t vocab, double log_total,
                  double reference_log_total) {
  const float shift = static_cast<float>(reference_log_total - log_total);
  for (int64_t i = 0; i < vocab; ++i) logits[i] = reference[i] - logits[i] - shift;
  cpu::Softmax(reference, vocab, 1.0f);
  return std::max(0.0, Dot(reference, logits, vocab));
}

double Percentile(const std::vector<double>& sorted, double share) {
  const size_t rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Steps a runner through one window, a chunk at a time.
class Window {
 public:
  Window(Runner& runner, int64_t context) : runner_(runner), tokens_(context), positions_(context) {
    std::iota(positions_.begin(), positions_.end(), 0);
    blocks_.resize((context + kBlockSize - 1) / kBlockSize);
    std::iota(blocks_.begin(), blocks_.end(), 0);
    rows_.resize(runner.options().max_step_tokens);
    std::iota(rows_.begin(), rows_.end(), 0);
    logits_.resize(runner.options().max_step_tokens * runner.config().vocab);
  }

  void Start(absl::Span<const int32_t> text) {
    std::copy(text.begin(), text.end(), tokens_.begin());
    const ModelConfig& config = runner_.config();
    if (config.add_bos && config.bos >= 0) tokens_[0] = config.bos;
  }

  absl::Status Step(int64_t begin, int64_t count) {
    const int32_t borders[] = {0, static_cast<int32_t>(count)};
    const int32_t context[] = {static_cast<int32_t>(begin + count)};
    StepBatch batch;
    batch.tokens = absl::MakeConstSpan(tokens_).subspan(begin, count);
    batch.positions = absl::MakeConstSpan(positions_).subspan(begin, count);
    batch.sequence_begin = borders;
    batch.context_length = context;
    batch.block_tables = blocks_;
    batch.max_blocks = blocks_.size();
    batch.logits_rows = absl::MakeConstSpan(rows_).subspan(0, count);
    return runner_.Step(batch, logits_.data());
  }

  float* Logits(int64_t row) { return logits_.data() + row * runner_.config().vocab; }

 private:
  Runner& runner_;
  std::vector<int32_t> tokens_, positions_, blocks_, rows_;
  std::vector<float> logits_;
};

// Scores the predictions of rows [0, count) of a step; `targets` are the tokens they predict.
void ScoreRows(Window& model, Window* reference, absl::Span<const int32_t> targets, int64_t vocab,
               ThreadPool& pool, Scores* scores) {
  const int64_t count = targets.size(), first = scores->nll.size();
  std::vector<char> agrees(count, 0);
  scores->nll.resize(first + count);
  if (reference != nullptr) {
    scores->reference_nll.resize(first + count);
    scores->kl.resize(first + count);
  }
  pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Prediction p = Judge(model.Logits(r), vocab, targets[r]);
      scores->nll[first + r] = p.nll;
      if (reference == nullptr) continue;
      const Prediction q = Judge(reference->Logits(r), vocab, targets[r]);
      scores->reference_nll[first + r] = q.nll;
      agrees[r] = p.best == q.best;
      scores->kl[first + r] =
          Divergence(model.Logits(r), reference->Logits(r), vocab, p.log_total, q.log_total);
    }
  });
  scores->agreed += std::count(agrees.begin(), agrees.end(), 1);
}

EvaluateResult Summarize(Scores scores, int64_t windows) {
  EvaluateResult result;
  result.windows = windows;
  result.tokens = scores.nll.size();
  result.mean_nll = Mean(scores.nll);
  result.perplexity = std::exp(result.mean_nll);
  if (scores.kl.empty()) return result;
  result.has_reference = true;
  result.reference_perplexity = std::exp(Mean(scores.reference_nll));
  result.mean_kl = Mean(scores.kl);
  result.top1_agreement = static_cast<double>(scores.agreed) / static_cast<double>(result.tokens);
  std::sort(scores.kl.begin(), scores.kl.end());
  result.kl_p99 = Percentile(scores.kl, 0.99);
  result.kl_p999 = Percentile(scores.kl, 0.999);
  result.kl_max = scores.kl.back();
  return result;
}

int64_t WindowCount(const EvaluateRequest& request) {
  const int64_t full = static_cast<int64_t>(request.tokens.size()) / request.context;
  return request.max_windows > 0 ? std::min(full, request.max_windows) : full;
}

}  // namespace

RunnerOptions EvaluationRunnerOptions(const ModelConfig& config, int64_t context,
                                      Numerics numerics) {
  RunnerOptions options;
  options.block_size = kBlockSize;
  options.kv_blocks = (context + kBlockSize - 1) / kBlockSize;
  const int64_t row_bytes = config.vocab * static_cast<int64_t>(sizeof(float));
  options.max_step_tokens =
      std::min(context, std::clamp<int64_t>(kLogitsBytes / row_bytes, 64, 512));
  options.max_sequences = 1;
  options.kv_dtype = DType::kF32;
  options.numerics = numerics;
  return options;
}

int64_t EvaluationLogitsBytes(const ModelConfig& config, const RunnerOptions& options) {
  return options.max_step_tokens * config.vocab * static_cast<int64_t>(sizeof(float));
}

absl::Status CheckEvaluation(const EvaluateRequest& request, const ModelConfig& config) {
  if (request.context < 2 || request.context > config.max_positions) {
    return InvalidField("context", absl::StrCat("must be in [2, ", config.max_positions, "], got ",
                                                request.context));
  }
  if (request.max_windows < 0) {
    return InvalidField("max_windows",
                        absl::StrCat("must be at least 0, got ", request.max_windows));
  }
  if (WindowCount(request) < 1) {
    return InvalidField("tokens", absl::StrCat("the text has ", request.tokens.size(),
                                               " tokens, a window takes ", request.context));
  }
  const auto outside = std::find_if(request.tokens.begin(), request.tokens.end(),
                                    [&](int32_t id) { return id < 0 || id >= config.vocab; });
  if (outside == request.tokens.end()) return absl::OkStatus();
  return InvalidField("tokens",
                      absl::StrCat("token ", *outside, " is not in [0, ", config.vocab, ")"));
}

absl::StatusOr<EvaluateResult> EvaluateRunners(Runner& model, Runner* reference,
                                               const EvaluateRequest& request, ThreadPool& pool,
                                               const std::function<void(double)>& progress,
                                               const std::function<bool()>& stop) {
  const int64_t vocab = model.config().vocab;
  if (reference != nullptr && reference->config().vocab != vocab) {
    return InvalidField("reference", absl::StrCat("has ", reference->config().vocab,
                                                  " tokens in its vocabulary, the model ", vocab));
  }
  Window window(model, request.context);
  std::optional<Window> other;
  if (reference != nullptr) other.emplace(*reference, request.context);
  Window* const reference_window = other ? &*other : nullptr;

  const int64_t windows = WindowCount(request), predictions = request.context - 1;
  const int64_t chunk = model.options().max_step_tokens;
  Scores scores;
  scores.nll.reserve(windows * predictions);
  for (int64_t w = 0; w < windows; ++w) {
    const absl::Span<const int32_t> text =
        absl::MakeConstSpan(request.tokens).subspan(w * request.context, request.context);
    window.Start(text);
    if (other) other->Start(text);
    for (int64_t begin = 0; begin < predictions; begin += chunk) {
      if (stop && stop()) {
        return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "", "cancelled");
      }
      const int64_t count = std::min(chunk, predictions - begin);
      absl::Status status = window.Step(begin, count);
      if (status.ok() && other) status = other->Step(begin, count);
      if (!status.ok()) return status;
      ScoreRows(window, reference_window, text.subspan(begin + 1, count), vocab, pool, &scores);
      if (progress) {
        progress(static_cast<double>(scores.nll.size()) /
                 static_cast<double>(windows * predictions));
      }
    }
  }
  return Summarize(std::move(scores), windows);
}

}  // namespace babai
