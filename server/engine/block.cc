#include "server/engine/block.h"

#include <cmath>
#include <numeric>

#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/row_ops.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// Rows below this many floats in all are not worth waking other threads for.
constexpr int64_t kSerialFloats = 16 * 1024;

// fn(row) for each of `rows` rows of `width` floats.
template <typename Fn>
void ForEachRow(int64_t rows, int64_t width, ThreadPool& pool, const Fn& fn) {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  };
  if (rows * width <= kSerialFloats) return run(0, rows);
  pool.ParallelFor(rows, 1, run);
}

void AddBias(absl::Span<const float> bias, float* x, int64_t stride, int64_t tokens,
             ThreadPool& pool) {
  if (bias.empty()) return;
  const int64_t width = bias.size();
  ForEachRow(tokens, width, pool, [&](int64_t t) {
    float* row = x + t * stride;
    for (int64_t i = 0; i < width; ++i) row[i] += bias[i];
  });
}

// Norms `segments` parts of each row in place of `out`.
void Norm(const ModelConfig& config, NormKind kind, const NormParams& norm, const float* x,
          const cpu::Rows& rows, float* out, ThreadPool& pool) {
  const float* bias = norm.bias.empty() ? nullptr : norm.bias.data();
  if (kind == NormKind::kLayer) {
    cpu::LayerNorm(x, out, rows, norm.weight.data(), bias, config.norm_eps, pool);
  } else {
    cpu::RmsNorm(x, out, rows, norm.weight.data(), 0.0f, config.norm_eps, pool);
  }
}

// Norm of each head of q or k (always RMS), where the model has one.
void NormHeads(const ModelConfig& config, const NormParams& norm, float* x, int64_t stride,
               int64_t heads, int64_t tokens, ThreadPool& pool) {
  if (norm.weight.empty()) return;
  Norm(config, NormKind::kRms, norm, x, {tokens, heads * config.head_dim, stride, heads}, x, pool);
}

cpu::Activation KernelActivation(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return cpu::Activation::kSilu;
    case Activation::kGeluTanh:
      return cpu::Activation::kGeluTanh;
    case Activation::kGeluErf:
      return cpu::Activation::kGeluErf;
    case Activation::kRelu:
      return cpu::Activation::kRelu;
  }
  return cpu::Activation::kIdentity;
}

void AddPositionRow(const ModelConfig& config, const ModelParams& params, int32_t position,
                    float* row) {
  if (params.positions.empty()) return;
  const float* add = params.positions.data() + (position + config.position_offset) * config.hidden;
  for (int64_t i = 0; i < config.hidden; ++i) row[i] += add[i];
}

}  // namespace

void FinishEmbedding(const ModelConfig& config, const ModelParams& params,
                     absl::Span<const int32_t> positions, float* x, ThreadPool& pool) {
  ForEachRow(positions.size(), config.hidden, pool, [&](int64_t t) {
    float* row = x + t * config.hidden;
    for (int64_t i = 0; i < config.hidden; ++i) row[i] *= config.embedding_scale;
    AddPositionRow(config, params, positions[t], row);
  });
}

void EmbedTokens(const ModelConfig& config, const ModelParams& params,
                 absl::Span<const float> embedding, absl::Span<const int32_t> ids,
                 absl::Span<const int32_t> positions, float* x, ThreadPool& pool) {
  for (size_t t = 0; t < ids.size(); ++t) {
    const float* row = embedding.data() + int64_t{ids[t]} * config.hidden;
    std::copy(row, row + config.hidden, x + t * config.hidden);
  }
  FinishEmbedding(config, params, positions, x, pool);
}

void NormRows(const ModelConfig& config, const NormParams& norm, const float* x, int64_t tokens,
              float* out, ThreadPool& pool) {
  Norm(config, config.norm, norm, x, {tokens, config.hidden, config.hidden, 1}, out, pool);
}

RotaryAngles::RotaryAngles(const ModelConfig& config) {
  for (const Rope& rope : config.ropes) {
    tables_.push_back({{rope.inv_freq.begin(), rope.inv_freq.end()}, rope.attention_scale, {}, {}});
  }
}

void RotaryAngles::Set(absl::Span<const int32_t> positions) {
  tokens_ = positions.size();
  for (Table& table : tables_) {
    const int64_t half = table.inv_freq.size();
    table.cos.resize(tokens_ * half);
    table.sin.resize(tokens_ * half);
    cpu::RopeAngles(positions.data(), tokens_, table.inv_freq.data(), half, table.scale,
                    table.cos.data(), table.sin.data());
  }
}

void FinishQkv(const ModelConfig& config, int64_t block, const BlockParams& params,
               const RotaryAngles& angles, const QkvRows& rows, ThreadPool& pool) {
  const int64_t tokens = angles.tokens();
  AddBias(params.q_bias, rows.q, rows.q_stride, tokens, pool);
  AddBias(params.k_bias, rows.k, rows.kv_stride, tokens, pool);
  AddBias(params.v_bias, rows.v, rows.kv_stride, tokens, pool);
  NormHeads(config, params.q_norm, rows.q, rows.q_stride, config.heads, tokens, pool);
  NormHeads(config, params.k_norm, rows.k, rows.kv_stride, config.kv_heads, tokens, pool);
  if (config.position != PositionKind::kRope) return;
  const RotaryAngles::Table& table = angles.tables_[config.layer[block].rope];
  const int64_t half = table.inv_freq.size();
  cpu::ApplyRope(rows.q, tokens, rows.q_stride, config.heads, config.head_dim, table.cos.data(),
                 table.sin.data(), half, pool);
  cpu::ApplyRope(rows.k, tokens, rows.kv_stride, config.kv_heads, config.head_dim, table.cos.data(),
                 table.sin.data(), half, pool);
}

absl::Status CausalAttention(const ModelConfig& config, int64_t block, const QkvRows& rows,
                             int64_t tokens, float* out, ThreadPool& pool) {
  cpu::KvShape shape;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.type = FloatType::kF32;
  const int64_t blocks = (tokens + shape.block_size - 1) / shape.block_size;
  cpu::AlignedBuffer keys(blocks * cpu::KvKeyBlockBytes(shape));
  cpu::AlignedBuffer values(blocks * cpu::KvValueBlockBytes(shape));
  cpu::AlignedBuffer scratch(cpu::AttentionScratchBytes(shape, tokens, pool.threads()));
  if (keys.data() == nullptr || values.data() == nullptr || scratch.data() == nullptr) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory for the keys and values of a sequence");
  }
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  const cpu::PagedKv kv = {shape, keys.data(), values.data()};
  const cpu::SequenceRows sequence = {table.data(), 0, tokens};
  cpu::AppendKv(kv, {&sequence, 1}, rows.k, rows.v, rows.kv_stride, pool);

  cpu::AttentionArgs args;
  args.q = rows.q;
  args.ldq = rows.q_stride;
  args.out = out;
  args.ldo = config.q_rows();
  args.heads = config.heads;
  args.scale = config.attention_scale;
  args.softcap = config.attention_softcap;
  args.window = config.layer[block].sliding_window;
  args.scratch = scratch.data();
  args.scratch_bytes = scratch.size();
  cpu::PagedAttention(kv, {&sequence, 1}, args, pool);
  return absl::OkStatus();
}

void Activate(const ModelConfig& config, const BlockParams& params, float* gate,
              int64_t gate_stride, float* up, int64_t up_stride, int64_t tokens, float* out,
              ThreadPool& pool) {
  const int64_t width = config.intermediate;
  const cpu::Activation f = KernelActivation(config.activation);
  AddBias(params.up_bias, up, up_stride, tokens, pool);
  if (!config.gated_mlp) return cpu::Activate(f, up, up_stride, out, width, tokens, width, pool);
  AddBias(params.gate_bias, gate, gate_stride, tokens, pool);
  if (up == gate + width && up_stride == gate_stride) {  // rows of a merged product
    return cpu::ActivateGated(f, gate, gate_stride, out, width, tokens, width, pool);
  }
  cpu::Activate(f, gate, gate_stride, gate, gate_stride, tokens, width, pool);
  ForEachRow(tokens, width, pool, [&](int64_t t) {
    for (int64_t i = 0; i < width; ++i)
      out[t * width + i] = gate[t * gate_stride + i] * up[t * up_stride + i];
  });
}

void AddToResidual(const ModelConfig& config, absl::Span<const float> bias, const NormParams& post,
                   float* y, int64_t tokens, float* x, ThreadPool& pool) {
  AddBias(bias, y, config.hidden, tokens, pool);
  if (!post.weight.empty()) NormRows(config, post, y, tokens, y, pool);
  cpu::AddRows(x, config.hidden, y, config.hidden, tokens, config.hidden, pool);
}

void FinishLogits(const ModelConfig& config, const ModelParams& params, float* logits,
                  int64_t tokens, ThreadPool& pool) {
  AddBias(params.head_bias, logits, config.vocab, tokens, pool);
  const float cap = config.logit_softcap;
  if (cap <= 0) return;
  ForEachRow(tokens, config.vocab, pool, [&](int64_t t) {
    float* row = logits + t * config.vocab;
    for (int64_t i = 0; i < config.vocab; ++i) row[i] = cap * std::tanh(row[i] / cap);
  });
}

}  // namespace babai
