#include "server/jobs/evaluation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cpu/row_ops.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kMaxLogits = 16 << 20;  // of one model, at a time

// What one prediction adds to the sums.
struct Prediction {
  double reference_nll = 0, nll = 0, kl = 0;
  bool agree = false;
};

// log(sum(exp(logits))), in fp64.
double LogSumExp(absl::Span<const float> logits, float max) {
  double sum = 0;
  for (const float l : logits) sum += std::exp(double{l} - max);
  return max + std::log(sum);
}

Prediction Compare(absl::Span<const float> p, absl::Span<const float> q, int32_t target) {
  const auto p_best = std::max_element(p.begin(), p.end()),
             q_best = std::max_element(q.begin(), q.end());
  const double p_norm = LogSumExp(p, *p_best), q_norm = LogSumExp(q, *q_best);
  Prediction result;
  result.reference_nll = p_norm - p[target];
  result.nll = q_norm - q[target];
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_norm;
    result.kl += std::exp(log_p) * (log_p - (q[i] - q_norm));
  }
  result.agree = p_best - p.begin() == q_best - q.begin();
  return result;
}

// Logits [rows, vocab] of hidden states [rows, hidden].
absl::Status ApplyHead(const ModelConfig& config, const ModelParams& params, StackedWeights& head,
                       const float* hidden, int64_t rows, std::vector<float>& logits,
                       ThreadPool& pool) {
  std::vector<float> norm(rows * config.hidden);
  logits.resize(rows * config.vocab);
  NormRows(config, params.final_norm, hidden, rows, norm.data(), pool);
  auto status = head.Multiply(norm.data(), rows, logits.data(), pool);
  if (status.ok()) FinishLogits(config, params, logits.data(), rows, pool);
  return status;
}

// KL(P || Q) of one position; p is the softmax of p_logits and p_norm their log(sum(exp)).
double KlOf(const float* p, const float* p_logits, double p_norm, const float* q_logits,
            int64_t vocab) {
  double kl = cpu::LogSumExp(q_logits, vocab) - p_norm;
  for (int64_t v = 0; v < vocab; ++v) kl += p[v] * (double{p_logits[v]} - q_logits[v]);
  return kl;
}

absl::Status LogitsNotFinite() {
  return Refuse(absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "calibration",
                "the model gives logits that are not finite");
}

// The head of one model, applied to some rows at a time.
class Head {
 public:
  Head(const ModelConfig& config, EvaluatedModel model, ThreadPool& pool)
      : config_(config), model_(std::move(model)), pool_(pool) {}

  // Logits [rows, vocab] of positions [begin, begin + rows) of a held-out sequence.
  absl::Status Logits(int64_t sequence, int64_t begin, int64_t rows, std::vector<float>& logits) {
    const float* hidden =
        model_.stream->hidden(model_.first_sequence + sequence) + begin * config_.hidden;
    return ApplyHead(config_, *model_.params, *model_.head, hidden, rows, logits, pool_);
  }

  const Sequence& tokens(int64_t sequence) const {
    return model_.stream->tokens(model_.first_sequence + sequence);
  }

 private:
  const ModelConfig& config_;
  EvaluatedModel model_;
  ThreadPool& pool_;
};

Evaluation Summarize(const std::vector<Prediction>& predictions) {
  Prediction sum;
  int64_t agreements = 0;
  for (const Prediction& p : predictions) {
    sum.reference_nll += p.reference_nll;
    sum.nll += p.nll;
    sum.kl += p.kl;
    agreements += p.agree;
  }
  const double count = predictions.size();
  Evaluation evaluation;
  evaluation.tokens = predictions.size();
  evaluation.perplexity = std::exp(sum.nll / count);
  evaluation.reference_perplexity = std::exp(sum.reference_nll / count);
  evaluation.mean_kl = sum.kl / count;
  evaluation.top1_agreement = agreements / count;
  return evaluation;
}

}  // namespace

absl::StatusOr<Evaluation> EvaluateStreams(const ModelConfig& config, EvaluatedModel reference,
                                           EvaluatedModel quantized, int64_t sequences,
                                           ThreadPool& pool, const std::function<bool()>& stop) {
  Head p(config, std::move(reference), pool), q(config, std::move(quantized), pool);
  const int64_t step = std::max<int64_t>(1, kMaxLogits / config.vocab);
  std::vector<Prediction> predictions;
  std::vector<float> p_logits, q_logits;
  for (int64_t s = 0; s < sequences; ++s) {
    const Sequence& tokens = p.tokens(s);
    const int64_t last = static_cast<int64_t>(tokens.size()) - 1;
    for (int64_t begin = 0; begin < last; begin += step) {
      if (stop()) return absl::CancelledError("stopped");
      const int64_t rows = std::min(step, last - begin);
      if (auto status = p.Logits(s, begin, rows, p_logits); !status.ok()) return status;
      if (auto status = q.Logits(s, begin, rows, q_logits); !status.ok()) return status;
      const size_t done = predictions.size();
      predictions.resize(done + rows);
      pool.ParallelFor(rows, 1, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          predictions[done + r] =
              Compare(absl::MakeConstSpan(p_logits).subspan(r * config.vocab, config.vocab),
                      absl::MakeConstSpan(q_logits).subspan(r * config.vocab, config.vocab),
                      tokens[begin + r + 1]);
        }
      });
    }
  }
  const Evaluation evaluation = Summarize(predictions);
  if (std::isfinite(evaluation.mean_kl)) return evaluation;
  return LogitsNotFinite();
}

absl::StatusOr<std::vector<double>> MeanKls(const ModelConfig& config, const ModelParams& params,
                                            StackedWeights& head, absl::Span<const float> original,
                                            absl::Span<const std::vector<float>* const> others,
                                            ThreadPool& pool, const std::function<bool()>& stop) {
  const auto positions = static_cast<int64_t>(original.size()) / config.hidden;
  const int64_t step = std::max<int64_t>(1, kMaxLogits / config.vocab);
  std::vector<double> sums(others.size(), 0.0);
  std::vector<float> p_logits, q_logits, p;
  for (int64_t begin = 0; begin < positions; begin += step) {
    const int64_t rows = std::min(step, positions - begin), at = begin * config.hidden;
    auto status = ApplyHead(config, params, head, original.data() + at, rows, p_logits, pool);
    if (!status.ok()) return status;
    p = p_logits;
    std::vector<double> p_norms(rows), kls(rows);
    pool.ParallelFor(rows, 1, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        p_norms[r] = cpu::LogSumExp(p_logits.data() + r * config.vocab, config.vocab);
        cpu::Softmax(p.data() + r * config.vocab, config.vocab, 1.0f);
      }
    });
    for (size_t i = 0; i < others.size(); ++i) {
      if (stop()) return absl::CancelledError("stopped");
      status = ApplyHead(config, params, head, others[i]->data() + at, rows, q_logits, pool);
      if (!status.ok()) return status;
      pool.ParallelFor(rows, 1, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; ++r) {
          const int64_t row = r * config.vocab;
          kls[r] = KlOf(p.data() + row, p_logits.data() + row, p_norms[r], q_logits.data() + row,
                        config.vocab);
        }
      });
      for (const double kl : kls) sums[i] += kl / static_cast<double>(positions);
    }
  }
  for (const double kl : sums) {
    if (!std::isfinite(kl)) return LogitsNotFinite();
  }
  return sums;
}

}  // namespace babai
