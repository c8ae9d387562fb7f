#include "server/jobs/forward.h"

#include <algorithm>
#include <utility>

#include "server/reason/reason.h"

namespace babai {
namespace {

// Enough rows for a GEMM at full speed and for the moments' parts of kMostTokens, few
// enough that a chunk's buffers stay small and cancellation is noticed soon.
constexpr int64_t kChunkTokens = 4096;

int64_t ChunkSequences(int64_t length) { return std::max<int64_t>(1, kChunkTokens / length); }

}  // namespace

void StackedWeights::Add(std::vector<float> weight) {
  begins_.push_back(outputs_);
  outputs_ += static_cast<int64_t>(weight.size()) / inputs_;
  parts_.push_back(std::move(weight));
}

absl::Status StackedWeights::Pack() {
  std::vector<cpu::DenseView> views;
  for (const std::vector<float>& w : parts_) {
    const int64_t rows = static_cast<int64_t>(w.size()) / inputs_;
    views.push_back({w.data(), FloatType::kF32, rows, inputs_});
  }
  auto packed = cpu::DenseWeights::Make(views);
  if (!packed.ok()) return packed.status();
  packed_.emplace(*std::move(packed));
  parts_.clear();
  return absl::OkStatus();
}

absl::Status StackedWeights::Multiply(const float* x, int64_t tokens, float* y, ThreadPool& pool) {
  if (!packed_) {
    if (auto status = Pack(); !status.ok()) return status;
  }
  const int64_t scratch_bytes = cpu::MatmulScratchBytes(tokens, inputs_);
  if (scratch_.size() < scratch_bytes) scratch_ = cpu::AlignedBuffer(scratch_bytes);
  if (scratch_.size() < scratch_bytes) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "there was not enough memory for the calibration forward");
  }
  cpu::MatmulArgs args;
  args.x = x;
  args.m = tokens;
  args.ldx = inputs_;
  args.y = y;
  args.ldy = outputs_;
  args.scratch = scratch_.data();
  cpu::MatmulDense(*packed_, args, pool);
  return absl::OkStatus();
}

CalibrationStream::CalibrationStream(const ModelConfig& config, std::vector<Sequence> sequences,
                                     ThreadPool& pool, std::function<bool()> stop,
                                     int64_t max_inner_bytes)
    : config_(config),
      sequences_(std::move(sequences)),
      pool_(pool),
      stop_(std::move(stop)),
      length_(sequences_.empty() ? 0 : static_cast<int64_t>(sequences_[0].size())),
      keeps_activations_(this->sequences() * length_ * config.intermediate *
                             static_cast<int64_t>(sizeof(float)) <=
                         max_inner_bytes),
      angles_(config) {
  const int64_t tokens = this->sequences() * length_;
  hidden_.resize(tokens * config.hidden);
  inner_.resize(tokens * (keeps_activations_ ? std::max(config.q_rows(), config.intermediate)
                                             : config.q_rows()));
  const int64_t most = std::min(this->sequences(), length_ == 0 ? 0 : ChunkSequences(length_));
  for (int64_t s = 0; s < most; ++s) {
    for (int64_t t = 0; t < length_; ++t) positions_.push_back(static_cast<int32_t>(t));
  }
}

void CalibrationStream::Embed(absl::Span<const float> embedding, const ModelParams& params) {
  const auto positions = absl::MakeConstSpan(positions_).subspan(0, length_);
  for (int64_t s = 0; s < sequences(); ++s) {
    float* x = hidden_.data() + s * length_ * config_.hidden;
    EmbedTokens(config_, params, embedding, sequences_[s], positions, x, pool_);
  }
}

void CalibrationStream::BeginBlock(int64_t block, const BlockParams* params) {
  block_ = block;
  params_ = params;
  mlp_.reset();
}

CalibrationStream::Chunk CalibrationStream::ChunkAt(int64_t first, int64_t count) {
  return {first, count, count * length_, hidden_.data() + first * length_ * config_.hidden};
}

absl::Status CalibrationStream::ForEachChunk(int64_t limit,
                                             absl::FunctionRef<absl::Status(const Chunk&)> visit) {
  for (int64_t first = 0; first < limit;) {
    if (stop_()) return absl::CancelledError("stopped");
    const Chunk chunk = ChunkAt(first, std::min(limit - first, ChunkSequences(length_)));
    if (auto status = visit(chunk); !status.ok()) return status;
    first += chunk.count;
  }
  return absl::OkStatus();
}

absl::StatusOr<const float*> CalibrationStream::GroupInput(Group group, const Chunk& chunk) {
  if (group == Group::kO) return InnerRows(chunk, config_.q_rows());
  if (group == Group::kDown && keeps_activations_) return InnerRows(chunk, config_.intermediate);
  if (group == Group::kDown) {
    activated_.resize(chunk.tokens * config_.intermediate);
    if (auto status = RunMlp(chunk, *mlp_, activated_.data()); !status.ok()) return status;
    return activated_.data();
  }
  const NormParams& norm = group == Group::kQkv ? params_->attn_norm : params_->mlp_norm;
  norm_.resize(chunk.tokens * config_.hidden);
  NormRows(config_, norm, chunk.x, chunk.tokens, norm_.data(), pool_);
  return norm_.data();
}

absl::Status CalibrationStream::Inputs(Group group, int64_t limit,
                                       absl::FunctionRef<absl::Status(const float*, int64_t)> see) {
  return ForEachChunk(limit, [&](const Chunk& chunk) -> absl::Status {
    const auto input = GroupInput(group, chunk);
    return input.ok() ? see(*input, chunk.tokens) : input.status();
  });
}

absl::Status CalibrationStream::PairedInputs(
    Group group, int64_t limit, CalibrationStream& other,
    absl::FunctionRef<absl::Status(const PairedRows&)> see) {
  return ForEachChunk(limit, [&](const Chunk& chunk) -> absl::Status {
    const Chunk theirs = other.ChunkAt(chunk.first, chunk.count);
    const auto mine = GroupInput(group, chunk);
    if (!mine.ok()) return mine.status();
    const auto original = other.GroupInput(group, theirs);
    if (!original.ok()) return original.status();
    return see({*mine, *original, chunk.x, theirs.x, chunk.tokens});
  });
}

absl::Status CalibrationStream::Attend(const Chunk& chunk, StackedWeights& weights) {
  const auto input = GroupInput(Group::kQkv, chunk);
  if (!input.ok()) return input.status();
  const int64_t stride = weights.outputs();
  product_.resize(chunk.tokens * stride);
  if (auto status = weights.Multiply(*input, chunk.tokens, product_.data(), pool_); !status.ok()) {
    return status;
  }
  const auto rows_of = [&](int64_t token) {
    float* row = product_.data() + token * stride;
    return QkvRows{row + weights.begin(0), row + weights.begin(1), row + weights.begin(2), stride,
                   stride};
  };
  // Chunks are alike, but for the last one.
  if (angles_.tokens() != chunk.tokens) {
    angles_.Set(absl::MakeConstSpan(positions_).subspan(0, chunk.tokens));
  }
  FinishQkv(config_, block_, *params_, angles_, rows_of(0), pool_);
  float* out = InnerRows(chunk, config_.q_rows());
  for (int64_t s = 0; s < chunk.count; ++s) {
    const int64_t token = s * length_;
    const auto status = CausalAttention(config_, block_, rows_of(token), length_,
                                        out + token * config_.q_rows(), pool_);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CalibrationStream::RunMlp(const Chunk& chunk, StackedWeights& weights, float* out) {
  const auto input = GroupInput(Group::kGateUp, chunk);
  if (!input.ok()) return input.status();
  const int64_t stride = weights.outputs();
  product_.resize(chunk.tokens * stride);
  if (auto status = weights.Multiply(*input, chunk.tokens, product_.data(), pool_); !status.ok()) {
    return status;
  }
  float* gate = product_.data();
  float* up = product_.data() + (config_.gated_mlp ? weights.begin(1) : 0);
  Activate(config_, *params_, gate, stride, up, stride, chunk.tokens, out, pool_);
  return absl::OkStatus();
}

absl::Status CalibrationStream::Advance(Group group, std::shared_ptr<StackedWeights> weights) {
  if (group == Group::kQkv) {
    return ForEachChunk(sequences(), [&](const Chunk& c) { return Attend(c, *weights); });
  }
  if (group == Group::kGateUp) {
    mlp_ = std::move(weights);
    if (!keeps_activations_) return absl::OkStatus();
    auto status = ForEachChunk(sequences(), [&](const Chunk& c) {
      return RunMlp(c, *mlp_, InnerRows(c, config_.intermediate));
    });
    mlp_.reset();
    return status;
  }
  const bool attention = group == Group::kO;
  const auto& bias = attention ? params_->o_bias : params_->down_bias;
  const NormParams& post = attention ? params_->post_attn_norm : params_->post_mlp_norm;
  return ForEachChunk(sequences(), [&](const Chunk& c) -> absl::Status {
    const auto input = GroupInput(group, c);
    if (!input.ok()) return input.status();
    // `product_` may hold what `input` was made from, but not `input` itself.
    product_.resize(c.tokens * config_.hidden);
    auto status = weights->Multiply(*input, c.tokens, product_.data(), pool_);
    if (status.ok()) AddToResidual(config_, bias, post, product_.data(), c.tokens, c.x, pool_);
    return status;
  });
}

}  // namespace babai
