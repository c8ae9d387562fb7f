// The launches of CudaRunner's step, in their order.
#include <algorithm>

#include "kernels/cuda/activate.h"
#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/rope_angles.h"
#include "server/engine/cuda_runner_impl.h"
#include "server/engine/cuda_status.h"

namespace babai {
namespace {

cuda::ActivationKind KindOf(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return cuda::ActivationKind::kSilu;
    case Activation::kGeluTanh:
      return cuda::ActivationKind::kGeluTanh;
    case Activation::kGeluErf:
      return cuda::ActivationKind::kGeluErf;
    case Activation::kRelu:
      return cuda::ActivationKind::kRelu;
  }
  return cuda::ActivationKind::kRelu;
}

// Of gated blocks whose products gate themselves: only these two are.
cuda::GateFunction GateOf(Activation activation) {
  return activation == Activation::kSilu ? cuda::kSiluGate : cuda::kGeluTanhGate;
}

// Whether a product may add to the residual stream what it makes.
bool AddsItself(const CudaLinear& linear, const float* bias, const cuda::NormWeights& post) {
  return linear.takes_ends() && bias == nullptr && post.weight == nullptr;
}
bool AttentionAdds(const CudaBlock& block) {
  return AddsItself(block.o, block.o_bias, block.post_attn_norm);
}
bool FeedForwardAdds(const CudaBlock& block) {
  return AddsItself(block.down, block.down_bias, block.post_mlp_norm);
}

}  // namespace

absl::Status CudaRunner::Launched(cudaError_t error, absl::string_view what) {
  wide_before_ = false;
  return cuda::FromCuda(error, what);
}

// Products that follow one another take turns (kernels/cuda/stream_gemm.h).
absl::Status CudaRunner::Product(const CudaLinear& linear, const void* x, int m, void* y,
                                 CudaLinear::How how) {
  how.turn = wide_before_ ? cuda::Turn::kNarrow : cuda::Turn::kWide;
  wide_before_ = linear.takes_ends() && how.turn == cuda::Turn::kWide;
  return linear.Run(x, m, y, weights_->dtype, gemms_, queue_, how);
}

absl::Status CudaRunner::NormedProduct(const cuda::AddNormArgs& norm, const CudaLinear& linear,
                                       void* y, CudaLinear::How how) {
  const bool plain = norm.y == nullptr && norm.row == nullptr && !norm.layer_norm;
  if (plain && linear.takes_ends() && linear.TakesNorm(norm.rows, gemms_)) {
    how.ends.norm = norm.norm.weight, how.ends.eps = norm.eps;
    return Product(linear, norm.x, norm.rows, y, how);
  }
  const absl::Status normed = Launched(cuda::AddNorm(norm, queue_), "AddNorm");
  return normed.ok() ? Product(linear, norm.h, norm.rows, y, how) : normed;
}

absl::Status CudaRunner::LastProduct(const CudaLinear& linear, const void* x, int m, bool adds) {
  CudaLinear::How how;
  if (adds) how.ends.output = cuda::GemmOutput::kAdd;
  return Product(linear, x, m, adds ? work_.x.data() : work_.y.data(), how);
}

absl::Status CudaRunner::EnqueueStart(const CudaStepShape& shape) {
  FirstError error;
  // Neither starts early: so all that starts later finds the step's integers and angles in place.
  const cuda::Queue in_line = {queue_.stream, false};
  if (ropes_.sum > 0) {
    const cuda::RopeAnglesArgs angles = {batch_->positions(),
                                         ropes_.inv_freq.data<double>(),
                                         ropes_.scales.data<float>(),
                                         work_.angles.data<float2>(),
                                         shape.tokens,
                                         ropes_.sum};
    error += Launched(cuda::RopeAngles(angles, in_line), "RopeAngles");
  }
  cuda::EmbedArgs embed{};
  embed.table = weights_->embedding;
  embed.tokens = batch_->tokens(), embed.positions = batch_->positions();
  embed.position_rows = weights_->positions, embed.scale = config_.embedding_scale;
  embed.x = work_.x.data<float>(), embed.count = shape.tokens;
  embed.hidden = static_cast<int>(config_.hidden);
  error += Launched(cuda::Embed(embed, in_line), "Embed");
  return error.status();
}

cuda::AddNormArgs CudaRunner::NormAfterAttention(int64_t b, int rows) const {
  const CudaBlock& block = weights_->blocks[b];
  cuda::AddNormArgs args = NormAfterFeedForward(-1, rows);
  if (!AttentionAdds(block)) {
    args.y = work_.y.data(), args.bias = block.o_bias, args.post = block.post_attn_norm;
  }
  args.norm = block.mlp_norm;
  return args;
}

cuda::AddNormArgs CudaRunner::NormAfterFeedForward(int64_t b, int rows) const {
  cuda::AddNormArgs args{};
  args.x = work_.x.data<float>(), args.h = work_.h.data();
  if (b >= 0 && !FeedForwardAdds(weights_->blocks[b])) {
    args.y = work_.y.data(), args.bias = weights_->blocks[b].down_bias;
    args.post = weights_->blocks[b].post_mlp_norm;
  }
  args.norm = b + 1 < config_.layers ? weights_->blocks[b + 1].attn_norm : weights_->final_norm;
  args.rows = rows, args.hidden = static_cast<int>(config_.hidden);
  args.layer_norm = config_.norm == NormKind::kLayer, args.eps = config_.norm_eps;
  args.dtype = weights_->dtype;
  return args;
}

// Two blocks an SM are enough to read at full rate; more splits only have more to add up.
int CudaRunner::MostSplits(int sequences) const {
  const int64_t blocks = sequences * config_.kv_heads;
  return static_cast<int>(
      std::clamp<int64_t>(2 * gemms_.limits.sms / blocks, 1, cuda::kMostDecodeSplits));
}

// From q, k and v to what the o product takes.
absl::Status CudaRunner::EnqueueHeads(int64_t b, const CudaStepShape& shape) {
  const CudaBlock& block = weights_->blocks[b];
  const int m = shape.tokens;
  const auto rows_from = [&](int64_t row) { return block.qkv.Output(work_.qkv.data(), m, row); };
  const cuda::RowsOf q = rows_from(0);
  cuda::FinishQkvArgs finish{};
  finish.q = const_cast<void*>(q.data), finish.q_stride = q.stride;
  finish.k = rows_from(config_.q_rows());
  finish.v = rows_from(config_.q_rows() + config_.kv_rows());
  finish.q_bias = block.q_bias, finish.k_bias = block.k_bias, finish.v_bias = block.v_bias;
  finish.q_norm = block.q_norm, finish.k_norm = block.k_norm;
  if (config_.position == PositionKind::kRope) {
    const int rope = config_.layer[b].rope;
    finish.angles = work_.angles.data<float2>() + ropes_.first[rope];
    finish.pairs = ropes_.pairs[rope], finish.angle_stride = ropes_.sum;
  }
  finish.slots = batch_->slots();
  finish.cache = CacheShape(config_, options_);
  finish.cache.k = cache_[b].first.data<__half>(), finish.cache.v = cache_[b].second.data<__half>();
  finish.count = m, finish.heads = static_cast<int>(config_.heads);
  finish.eps = config_.norm_eps, finish.dtype = weights_->dtype;

  cuda::AttentionArgs attention{};
  attention.q = q, attention.out = work_.attention.data(), attention.cache = finish.cache;
  attention.tables = batch_->tables(), attention.heads = finish.heads;
  attention.scale = config_.attention_scale, attention.softcap = config_.attention_softcap;
  attention.window = static_cast<int>(config_.layer[b].sliding_window);
  attention.dtype = weights_->dtype;

  FirstError error;
  const bool prefills = shape.prefill_tiles > 0;
  if (prefills) error += Launched(cuda::FinishQkv(finish, queue_), "FinishQkv");
  if (shape.decodes > 0) {
    attention.sequences = batch_->decodes();
    const cuda::DecodePlan plan = {shape.decodes,
                                   shape.splits,
                                   MostSplits(shape.decodes),
                                   work_.decode.data(),
                                   static_cast<int>(options_.max_sequences),
                                   gemms_.limits.sms};
    error += Launched(cuda::DecodeAttention(attention, plan, queue_, prefills ? nullptr : &finish),
                      "DecodeAttention");
  }
  if (prefills) {
    attention.sequences = batch_->prefills();
    error += Launched(
        cuda::PrefillAttention(attention, batch_->prefill_tiles(), shape.prefill_tiles, queue_),
        "PrefillAttention");
  }
  return error.status();
}

absl::Status CudaRunner::EnqueueAttention(int64_t b, const CudaStepShape& shape) {
  const CudaBlock& block = weights_->blocks[b];
  const int m = shape.tokens;
  FirstError error;
  CudaLinear::How how;
  if (shape.decodes > 0) how.spared_bytes = cuda::kDecodeBlockBytes;
  error += NormedProduct(NormAfterFeedForward(b - 1, m), block.qkv, work_.qkv.data(), how);
  error += EnqueueHeads(b, shape);
  error += LastProduct(block.o, work_.attention.data(), m, AttentionAdds(block));
  return error.status();
}

absl::Status CudaRunner::EnqueueFeedForward(int64_t b, const CudaStepShape& shape) {
  const CudaBlock& block = weights_->blocks[b];
  const int m = shape.tokens;
  const cuda::AddNormArgs norm = NormAfterAttention(b, m);
  FirstError error;
  if (block.gate_up.order() == CudaLinear::Order::kInEights) {
    CudaLinear::How how;
    how.ends.output = cuda::GemmOutput::kGate;
    how.ends.gate = GateOf(config_.activation);
    error += NormedProduct(norm, block.gate_up, work_.activated.data(), how);
  } else {
    error += NormedProduct(norm, block.gate_up, work_.mlp.data(), {});
    cuda::ActivateArgs activate{};
    if (config_.gated_mlp) activate.gate = block.gate_up.Output(work_.mlp.data(), m, 0);
    activate.up =
        block.gate_up.Output(work_.mlp.data(), m, config_.gated_mlp ? config_.intermediate : 0);
    activate.gate_bias = block.gate_bias, activate.up_bias = block.up_bias;
    activate.out = work_.activated.data(), activate.rows = m;
    activate.width = static_cast<int>(config_.intermediate);
    activate.kind = KindOf(config_.activation), activate.dtype = weights_->dtype;
    error += Launched(cuda::Activate(activate, queue_), "Activate");
  }
  error += LastProduct(block.down, work_.activated.data(), m, FeedForwardAdds(block));
  return error.status();
}

absl::Status CudaRunner::EnqueueHead(int first, int count, Rows rows) {
  FirstError error;
  cuda::AddNormArgs norm = NormAfterFeedForward(config_.layers - 1, count);
  if (rows == Rows::kWanted) norm.row = batch_->logits_rows() + first;
  error += NormedProduct(norm, weights_->head, work_.head.data(), {});
  cuda::FinishLogitsArgs finish{};
  finish.y = work_.head.data(), finish.bias = weights_->head_bias;
  finish.softcap = config_.logit_softcap, finish.logits = work_.logits.data<float>();
  finish.results = batch_->results() + first, finish.choices = batch_->choices() + first;
  finish.chunks = work_.chunks.data<cuda::LogitChunk>();
  finish.rows = count, finish.vocab = static_cast<int>(config_.vocab);
  finish.dtype = weights_->dtype;
  error += Launched(cuda::FinishLogits(finish, queue_), "FinishLogits");
  if (ChoosesTokens()) {
    const cuda::ChooseTokensArgs choose = {finish.logits,  finish.chunks, finish.choices,
                                           finish.results, finish.rows,   finish.vocab};
    error += Launched(cuda::ChooseTokens(choose, queue_), "ChooseTokens");
  }
  return error.status();
}

absl::Status CudaRunner::EnqueueBlocks(const CudaStepShape& shape) {
  FirstError error;
  error += EnqueueStart(shape);
  for (int64_t b = 0; b < config_.layers; ++b) {
    error += EnqueueAttention(b, shape);
    error += EnqueueFeedForward(b, shape);
  }
  return error.status();
}

}  // namespace babai
