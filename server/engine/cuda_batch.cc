#include "server/engine/cuda_batch.h"

#include <algorithm>
#include <utility>

namespace babai {
namespace {

constexpr int64_t kWord = sizeof(int32_t);

int64_t MostTiles(const ModelConfig& config, const RunnerOptions& options) {
  const int64_t group = config.heads / config.kv_heads;
  return options.max_step_tokens * group / cuda::kPrefillRows + options.max_sequences;
}

int64_t MostBlocks(const ModelConfig& config, const RunnerOptions& options) {
  const int64_t size = options.block_size;
  const int64_t of_context = (config.max_positions + size - 1) / size;
  return std::min(of_context, options.kv_blocks);
}

}  // namespace

CudaBatch::CudaBatch(const ModelConfig& config, const RunnerOptions& options)
    : heads_(static_cast<int>(config.heads)),
      kv_heads_(static_cast<int>(config.kv_heads)),
      block_size_(static_cast<int>(options.block_size)) {
  constexpr int64_t kSequence = sizeof(cuda::AttentionSequence) / kWord;
  constexpr int64_t kTile = sizeof(cuda::PrefillTile) / kWord;
  constexpr int64_t kChoice = sizeof(cuda::RowChoice) / kWord;
  constexpr int64_t kResult = sizeof(cuda::RowResult) / kWord;
  const int64_t t = options.max_step_tokens, s = options.max_sequences;
  end_ = 0;
  const auto take = [this](int64_t words) {
    const int64_t at = end_;
    end_ += (words + 3) / 4 * 4;  // every array begins at 16 bytes
    return at;
  };
  tokens_ = take(t), positions_ = take(t), slots_ = take(t), logits_rows_ = take(t);
  choices_ = take(t * kChoice), results_ = take(t * kResult);
  decodes_ = take(s * kSequence), prefills_ = take(s * kSequence);
  tiles_ = take(MostTiles(config, options) * kTile);
  tables_ = take(s * MostBlocks(config, options));
}

int64_t CudaBatch::Bytes(const ModelConfig& config, const RunnerOptions& options) {
  return CudaBatch(config, options).end_ * kWord;
}

absl::StatusOr<CudaBatch> CudaBatch::Make(const ModelConfig& config, const RunnerOptions& options) {
  CudaBatch batch(config, options);
  absl::StatusOr<cuda::Buffer> host = cuda::Buffer::Pinned(batch.end_ * kWord);
  if (!host.ok()) return host.status();
  absl::StatusOr<cuda::Buffer> device = cuda::Buffer::OnDevice(batch.end_ * kWord);
  if (!device.ok()) return device.status();
  batch.host_ = *std::move(host), batch.device_ = *std::move(device);
  std::fill_n(batch.HostAt(0), batch.end_, 0);
  return batch;
}

CudaStepShape CudaBatch::Fill(const StepBatch& batch) {
  CudaStepShape shape;
  shape.tokens = static_cast<int>(batch.tokens.size());
  shape.logits = static_cast<int>(batch.logits_rows.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), HostAt(tokens_));
  std::copy(batch.positions.begin(), batch.positions.end(), HostAt(positions_));
  std::copy(batch.logits_rows.begin(), batch.logits_rows.end(), HostAt(logits_rows_));
  auto* choices = HostAt<cuda::RowChoice>(choices_);
  std::fill_n(choices, shape.logits, cuda::RowChoice{});
  for (size_t r = 0; r < batch.choices.size(); ++r) {
    const TokenChoice& choice = batch.choices[r];
    choices[r] = {choice.u, choice.temperature, choice.by_runner ? 1 : 0};
  }
  used_ = tables_, prefill_count_ = 0;
  for (size_t s = 0; s + 1 < batch.sequence_begin.size(); ++s) {
    if (batch.sequence_begin[s] < batch.sequence_begin[s + 1]) AddSequence(batch, s, &shape);
  }
  return shape;
}

void CudaBatch::AddSequence(const StepBatch& batch, size_t s, CudaStepShape* shape) {
  const int32_t begin = batch.sequence_begin[s], rows = batch.sequence_begin[s + 1] - begin;
  const int32_t start = batch.positions[begin], context = start + rows;
  const int32_t* table = batch.block_tables.data() + s * batch.max_blocks;
  const cuda::AttentionSequence sequence = {begin, rows, start,
                                            static_cast<int32_t>(used_ - tables_)};
  std::copy_n(table, (context + block_size_ - 1) / block_size_, HostAt(used_));
  used_ += (context + block_size_ - 1) / block_size_;
  for (int32_t i = 0; i < rows; ++i) {
    const int32_t position = start + i;
    HostAt(slots_)[begin + i] =
        table[position / block_size_] * block_size_ + position % block_size_;
  }
  if (rows == 1) {
    HostAt<cuda::AttentionSequence>(decodes_)[shape->decodes++] = sequence;
    shape->splits = std::max(shape->splits, cuda::DecodeSplits(context));
    return;
  }
  const auto index = static_cast<int32_t>(prefill_count_++);
  HostAt<cuda::AttentionSequence>(prefills_)[index] = sequence;
  for (int32_t tile = 0; tile < cuda::PrefillTiles(rows, heads_, kv_heads_); ++tile) {
    HostAt<cuda::PrefillTile>(tiles_)[shape->prefill_tiles++] = {index, tile};
  }
}

void CudaBatch::Pad(int tokens, CudaStepShape* shape) {
  for (int t = shape->tokens; t < tokens; ++t) {
    HostAt(tokens_)[t] = HostAt(positions_)[t] = 0;
    HostAt(slots_)[t] = -1;
    HostAt(logits_rows_)[t] = t;
    HostAt<cuda::RowChoice>(choices_)[t] = {};
    HostAt<cuda::AttentionSequence>(decodes_)[t] = {};
  }
  shape->tokens = shape->decodes = shape->logits = tokens;
}

absl::Status CudaBatch::Send(const cuda::Stream& stream) const {
  return cuda::FromCuda(cudaMemcpyAsync(device_.data(), host_.data(), used_ * kWord,
                                        cudaMemcpyHostToDevice, stream.get()),
                        "sending a step");
}

}  // namespace babai
