#include "server/engine/cpu_runner.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/matmul.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kFloat = sizeof(float);

float* Floats(cpu::AlignedBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

int64_t QkvRowsOf(const ModelConfig& config) { return config.q_rows() + 2 * config.kv_rows(); }
int64_t MlpRowsOf(const ModelConfig& config) {
  return config.intermediate * (config.gated_mlp ? 2 : 1);
}

// Every buffer of CpuRunner::Work, in bytes.
struct WorkBytes {
  int64_t x, h, qkv, attention, mlp, activated, y, matmul_scratch, attention_scratch;
  int64_t sum() const {
    return x + h + qkv + attention + mlp + activated + y + matmul_scratch + attention_scratch;
  }
};

cpu::KvShape ShapeOf(const ModelConfig& config, const RunnerOptions& options) {
  cpu::KvShape shape;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.head_dim;
  shape.block_size = options.block_size;
  shape.type = KernelType(options.kv_dtype);
  return shape;
}

WorkBytes PlanWork(const ModelConfig& config, const RunnerOptions& options, int threads) {
  const int64_t t = options.max_step_tokens;
  const int64_t widest = std::max({config.hidden, config.q_rows(), config.intermediate});
  const int64_t context = std::min(config.max_positions, options.kv_blocks * options.block_size);
  WorkBytes bytes;
  bytes.x = bytes.h = bytes.y = t * config.hidden * kFloat;
  bytes.qkv = t * QkvRowsOf(config) * kFloat;
  bytes.attention = t * config.q_rows() * kFloat;
  bytes.mlp = t * MlpRowsOf(config) * kFloat;
  bytes.activated = t * config.intermediate * kFloat;
  bytes.matmul_scratch = LinearScratchBytes(t, widest);
  bytes.attention_scratch = cpu::AttentionScratchBytes(ShapeOf(config, options), context, threads);
  return bytes;
}

absl::Status CheckLimits(const ModelConfig& config, const RunnerOptions& options) {
  const auto refuse = [](std::string_view message) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, "", message);
  };
  if (config.head_dim < 1 || config.head_dim > 256) {
    return refuse(absl::StrCat("the CPU kernels take head sizes 1 to 256, not ", config.head_dim));
  }
  if (config.kv_heads < 1 || config.heads % config.kv_heads != 0) {
    return refuse("key/value heads must divide the heads");
  }
  if (options.block_size < 16 || options.block_size % 16 != 0) {
    return refuse("KV blocks must hold a multiple of 16 tokens");
  }
  return absl::OkStatus();
}

absl::Status NoMemory(int64_t bytes, std::string_view what) {
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                absl::StrCat("no memory for ", bytes, " bytes of ",
                             absl::string_view(what.data(), what.size())));
}

absl::Status AllocateBuffer(int64_t bytes, std::string_view what, cpu::AlignedBuffer* buffer) {
  *buffer = cpu::AlignedBuffer(bytes);
  return buffer->data() != nullptr || bytes == 0 ? absl::OkStatus() : NoMemory(bytes, what);
}

// An exponent of all ones is a NaN or an infinity. Fixed-size inner loop: it becomes vector code.
bool AllFinite(const float* x, int64_t n) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t bad[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    uint32_t bits[16];
    std::memcpy(bits, x + i, sizeof(bits));
    for (int j = 0; j < 16; ++j) bad[j] |= (bits[j] & kExponent) == kExponent;
  }
  for (; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bad[0] |= (bits & kExponent) == kExponent;
  }
  return std::none_of(std::begin(bad), std::end(bad), [](uint32_t b) { return b != 0; });
}

}  // namespace

CpuRunner::CpuRunner(const ModelConfig& config, std::unique_ptr<CpuWeights> weights,
                     const RunnerOptions& options, ThreadPool& pool)
    : config_(config),
      weights_(std::move(weights)),
      options_(options),
      pool_(pool),
      shape_(ShapeOf(config, options)),
      angles_(config) {}

absl::StatusOr<std::unique_ptr<Runner>> CpuRunner::Create(const ModelConfig& config,
                                                          std::unique_ptr<CpuWeights> weights,
                                                          const RunnerOptions& options,
                                                          ThreadPool& pool) {
  if (absl::Status status = CheckLimits(config, options); !status.ok()) return status;
  std::unique_ptr<CpuRunner> runner(new CpuRunner(config, std::move(weights), options, pool));
  if (absl::Status status = runner->Allocate(); !status.ok()) return status;
  return std::unique_ptr<Runner>(std::move(runner));
}

absl::Status CpuRunner::Allocate() {
  const WorkBytes plan = PlanWork(config_, options_, pool_.threads());
  const std::pair<int64_t, cpu::AlignedBuffer*> buffers[] = {
      {plan.x, &work_.x},
      {plan.h, &work_.h},
      {plan.qkv, &work_.qkv},
      {plan.attention, &work_.attention},
      {plan.mlp, &work_.mlp},
      {plan.activated, &work_.activated},
      {plan.y, &work_.y},
      {plan.matmul_scratch, &work_.matmul_scratch},
      {plan.attention_scratch, &work_.attention_scratch}};
  for (const auto& [bytes, buffer] : buffers) {
    if (absl::Status s = AllocateBuffer(bytes, "step buffers", buffer); !s.ok()) return s;
  }
  const int64_t k_bytes = options_.kv_blocks * cpu::KvKeyBlockBytes(shape_);
  const int64_t v_bytes = options_.kv_blocks * cpu::KvValueBlockBytes(shape_);
  cache_.resize(config_.layers);
  for (LayerCache& layer : cache_) {
    if (absl::Status s = AllocateBuffer(k_bytes, "KV cache", &layer.k); !s.ok()) return s;
    if (absl::Status s = AllocateBuffer(v_bytes, "KV cache", &layer.v); !s.ok()) return s;
  }
  sequences_.reserve(options_.max_sequences);
  const std::vector<int32_t> positions(options_.max_step_tokens, 0);
  angles_.Set(positions);  // sizes its tables
  return absl::OkStatus();
}

int64_t CpuRunner::kv_bytes() const {
  return config_.layers * options_.kv_blocks *
         (cpu::KvKeyBlockBytes(shape_) + cpu::KvValueBlockBytes(shape_));
}

void CpuRunner::Apply(const Linear& linear, const float* x, int64_t tokens, float* y) {
  cpu::MatmulArgs args;
  args.x = x;
  args.m = tokens;
  args.ldx = linear.cols();
  args.y = y;
  args.ldy = linear.rows();
  args.scratch = work_.matmul_scratch.data();
  linear.Apply(args, options_.numerics, pool_);
}

void CpuRunner::Embed(const StepBatch& batch) {
  float* x = Floats(work_.x);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    weights_->embedding_row(batch.tokens[t], x + t * config_.hidden);
  }
  FinishEmbedding(config_, weights_->params, batch.positions, x, pool_);
}

void CpuRunner::SetSequences(const StepBatch& batch) {
  sequences_.clear();
  for (size_t s = 0; s + 1 < batch.sequence_begin.size(); ++s) {
    const int32_t begin = batch.sequence_begin[s], end = batch.sequence_begin[s + 1];
    if (begin == end) continue;
    sequences_.push_back(
        {batch.block_tables.data() + s * batch.max_blocks, batch.positions[begin], end - begin});
  }
}

void CpuRunner::Attend(int64_t b, int64_t tokens) {
  const CpuBlock& block = weights_->blocks[b];
  float* x = Floats(work_.x);
  float* h = Floats(work_.h);
  NormRows(config_, block.params.attn_norm, x, tokens, h, pool_);
  Apply(block.qkv, h, tokens, Floats(work_.qkv));

  const int64_t stride = QkvRowsOf(config_);
  float* q = Floats(work_.qkv);
  float* k = q + config_.q_rows();
  float* v = k + config_.kv_rows();
  FinishQkv(config_, b, block.params, angles_, {q, k, v, stride, stride}, pool_);
  const cpu::PagedKv kv = {shape_, cache_[b].k.data(), cache_[b].v.data()};
  cpu::AppendKv(kv, sequences_, k, v, stride, pool_);

  cpu::AttentionArgs args;
  args.q = q;
  args.ldq = stride;
  args.out = Floats(work_.attention);
  args.ldo = config_.q_rows();
  args.heads = config_.heads;
  args.scale = config_.attention_scale;
  args.softcap = config_.attention_softcap;
  args.window = config_.layer[b].sliding_window;
  args.scratch = work_.attention_scratch.data();
  args.scratch_bytes = work_.attention_scratch.size();
  cpu::PagedAttention(kv, sequences_, args, pool_);

  Apply(block.o, args.out, tokens, Floats(work_.y));
  AddToResidual(config_, block.params.o_bias, block.params.post_attn_norm, Floats(work_.y), tokens,
                x, pool_);
}

void CpuRunner::FeedForward(int64_t b, int64_t tokens) {
  const CpuBlock& block = weights_->blocks[b];
  float* x = Floats(work_.x);
  NormRows(config_, block.params.mlp_norm, x, tokens, Floats(work_.h), pool_);
  Apply(block.gate_up, Floats(work_.h), tokens, Floats(work_.mlp));
  const int64_t stride = MlpRowsOf(config_);
  float* gate = Floats(work_.mlp);
  float* up = gate + (config_.gated_mlp ? config_.intermediate : 0);
  Activate(config_, block.params, gate, stride, up, stride, tokens, Floats(work_.activated), pool_);
  Apply(block.down, Floats(work_.activated), tokens, Floats(work_.y));
  AddToResidual(config_, block.params.down_bias, block.params.post_mlp_norm, Floats(work_.y),
                tokens, x, pool_);
}

void CpuRunner::Head(const StepBatch& batch, float* logits) {
  const int64_t rows = batch.logits_rows.size();
  float* h = Floats(work_.h);
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = Floats(work_.x) + batch.logits_rows[r] * config_.hidden;
    std::copy(x, x + config_.hidden, h + r * config_.hidden);
  }
  NormRows(config_, weights_->params.final_norm, h, rows, h, pool_);
  Apply(weights_->head, h, rows, logits);
  FinishLogits(config_, weights_->params, logits, rows, pool_);
}

absl::Status CpuRunner::CheckFinite(const float* logits, int64_t rows) const {
  std::atomic<bool> finite = true;
  pool_.ParallelFor(rows, 1, [&](int64_t begin, int64_t end) {
    if (!AllFinite(logits + begin * config_.vocab, (end - begin) * config_.vocab)) finite = false;
  });
  if (finite) return absl::OkStatus();
  return Refuse(absl::StatusCode::kInternal, reason::kNonFiniteLogits, "",
                "the model produced a NaN or an infinity");
}

absl::Status CpuRunner::Step(const StepBatch& batch, float* logits) {
  const int64_t tokens = batch.tokens.size();
  if (tokens == 0) return absl::OkStatus();
  angles_.Set(batch.positions);
  SetSequences(batch);
  Embed(batch);
  for (int64_t b = 0; b < config_.layers; ++b) {
    Attend(b, tokens);
    FeedForward(b, tokens);
  }
  if (batch.logits_rows.empty()) return absl::OkStatus();
  Head(batch, logits);
  return CheckFinite(logits, batch.logits_rows.size());
}

void CpuRunner::CopyKvBlock(int32_t from, int32_t to) {
  const int64_t k_bytes = cpu::KvKeyBlockBytes(shape_), v_bytes = cpu::KvValueBlockBytes(shape_);
  for (LayerCache& layer : cache_) {
    std::memcpy(layer.k.data() + to * k_bytes, layer.k.data() + from * k_bytes, k_bytes);
    std::memcpy(layer.v.data() + to * v_bytes, layer.v.data() + from * v_bytes, v_bytes);
  }
}

absl::StatusOr<MemoryPlan> PlanMemory(const PackedModel& model, const RunnerOptions& options) {
  if (absl::Status status = CheckLimits(model.config(), options); !status.ok()) return status;
  absl::StatusOr<int64_t> weight_bytes = PlanWeightBytes(model);
  if (!weight_bytes.ok()) return weight_bytes.status();
  const cpu::KvShape shape = ShapeOf(model.config(), options);
  MemoryPlan plan;
  plan.weight_bytes = *weight_bytes;
  plan.kv_bytes_per_block =
      model.config().layers * (cpu::KvKeyBlockBytes(shape) + cpu::KvValueBlockBytes(shape));
  plan.work_bytes = PlanWork(model.config(), options, /*threads=*/1).sum();
  return plan;
}

absl::StatusOr<std::unique_ptr<Runner>> MakeCpuRunner(std::shared_ptr<const PackedModel> model,
                                                      const RunnerOptions& options,
                                                      ThreadPool& pool) {
  const ModelConfig config = model->config();
  absl::StatusOr<std::unique_ptr<CpuWeights>> weights = LoadCpuWeights(std::move(model));
  if (!weights.ok()) return weights.status();
  return CpuRunner::Create(config, *std::move(weights), options, pool);
}

absl::StatusOr<std::unique_ptr<Runner>> MakeCpuRunner(const Checkpoint& checkpoint,
                                                      const RunnerOptions& options,
                                                      ThreadPool& pool) {
  absl::StatusOr<std::unique_ptr<CpuWeights>> weights = LoadCpuWeights(checkpoint);
  if (!weights.ok()) return weights.status();
  return CpuRunner::Create(checkpoint.config(), *std::move(weights), options, pool);
}

}  // namespace babai
