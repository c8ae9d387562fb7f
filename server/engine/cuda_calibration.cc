#include "server/engine/cuda_calibration.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/activate.h"
#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/rope_angles.h"
#include "server/engine/cuda_runner_impl.h"
#include "server/engine/cuda_weights.h"

namespace babai {
namespace {

// Rows that keep every SM busy in each product, few enough that a chunk's buffers stay small beside
// what all sequences leave.
constexpr int64_t kChunkTokens = 16384;
constexpr int64_t kElement = 2;  // bytes of an activation
constexpr int kKvBlock = 64;

int64_t MergedRows(const ModelConfig& config) { return config.q_rows() + 2 * config.kv_rows(); }
int64_t MlpRows(const ModelConfig& config) {
  return config.intermediate * (config.gated_mlp ? 2 : 1);
}
int64_t BlocksOf(int64_t length) { return (length + kKvBlock - 1) / kKvBlock; }
int64_t PairsOf(const ModelConfig& config) {
  int64_t pairs = 0;
  for (const Rope& rope : config.ropes) pairs += static_cast<int64_t>(rope.inv_freq.size());
  return pairs;
}
int Int(int64_t value) { return static_cast<int>(value); }

static_assert(static_cast<int>(Activation::kSilu) == static_cast<int>(cuda::ActivationKind::kSilu));
static_assert(static_cast<int>(Activation::kGeluTanh) ==
              static_cast<int>(cuda::ActivationKind::kGeluTanh));
static_assert(static_cast<int>(Activation::kGeluErf) ==
              static_cast<int>(cuda::ActivationKind::kGeluErf));
static_assert(static_cast<int>(Activation::kRelu) == static_cast<int>(cuda::ActivationKind::kRelu));

// Every buffer, in bytes.
struct Sizes {
  int64_t chunk, tokens;  // tokens of a chunk and of all sequences
  int64_t hidden, inner, norm, product, wide, activated, cache, angles;

  Sizes(const ModelConfig& c, const CudaCalibration::Shape& s) {
    const int64_t together = std::max<int64_t>(1, kChunkTokens / std::max<int64_t>(1, s.length));
    const int64_t sequences = std::min(together, s.sequences);
    chunk = sequences * s.length, tokens = s.sequences * s.length;
    hidden = tokens * c.hidden * static_cast<int64_t>(sizeof(float));
    inner = tokens * kElement *
            (s.keeps_activations ? std::max(c.q_rows(), c.intermediate) : c.q_rows());
    norm = chunk * c.hidden * kElement;
    product = chunk * std::max(MergedRows(c), c.hidden) * kElement;
    wide = chunk * MlpRows(c) * kElement;
    activated = s.keeps_activations ? 0 : chunk * c.intermediate * kElement;
    const cuda::KvCache one = {nullptr, nullptr, Int(c.kv_heads), Int(c.head_dim), kKvBlock};
    cache = sequences * BlocksOf(s.length) * one.block_values() * kElement;
    angles = chunk * PairsOf(c) * static_cast<int64_t>(sizeof(float2));
  }
  int64_t sum() const {
    return hidden + inner + norm + product + wide + activated + 2 * cache + angles;
  }
};

absl::Status Launched(cudaError_t error, absl::string_view what) {
  return cuda::FromCuda(error, what);
}

template <typename T>
absl::Status Upload(const std::vector<T>& values, cuda::Buffer* buffer) {
  absl::StatusOr<cuda::Buffer> made = cuda::Buffer::Of<T>(values);
  if (made.ok()) *buffer = *std::move(made);
  return made.status();
}

}  // namespace

absl::Status CudaCalibration::Check(const ModelConfig& config) {
  RunnerOptions options;
  options.kv_dtype = DType::kF16;
  return CudaRunner::Check(config, options);
}

int64_t CudaCalibration::Bytes(const ModelConfig& config, const Shape& shape) {
  return Sizes(config, shape).sum();
}

CudaCalibration::CudaCalibration(const ModelConfig& config, const Shape& shape,
                                 const cuda::Stream& stream, cuda::Cublas& cublas)
    : config_(config),
      shape_(shape),
      dtype_(ActivationType(config)),
      stream_(stream),
      cublas_(cublas) {}

absl::StatusOr<std::unique_ptr<CudaCalibration>> CudaCalibration::Make(
    const ModelConfig& config, const Shape& shape, absl::Span<const BlockParams> params,
    const cuda::Stream& stream, cuda::Cublas& cublas) {
  std::unique_ptr<CudaCalibration> made(new CudaCalibration(config, shape, stream, cublas));
  absl::Status status = made->Allocate();
  if (status.ok()) status = made->LoadParams(params);
  if (status.ok()) status = made->PlanAttention();
  if (status.ok()) status = made->MakeAngles();
  if (!status.ok()) return status;
  return made;
}

absl::Status CudaCalibration::Allocate() {
  const Sizes sizes(config_, shape_);
  for (const auto& [bytes, buffer] :
       {std::pair{sizes.hidden, &hidden_}, std::pair{sizes.inner, &inner_},
        std::pair{sizes.norm, &norm_}, std::pair{sizes.product, &product_},
        std::pair{sizes.wide, &wide_}, std::pair{sizes.activated, &activated_},
        std::pair{sizes.cache, &keys_}, std::pair{sizes.cache, &values_},
        std::pair{sizes.angles, &angles_}}) {
    auto made = cuda::Buffer::OnDevice(bytes);
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  // What is past head_dim, and past a sequence's end, stays 0.
  for (const cuda::Buffer* cache : {&keys_, &values_}) {
    if (cache->bytes() == 0) continue;
    const absl::Status cleared = Launched(
        cudaMemsetAsync(cache->data(), 0, cache->bytes(), stream_.get()), "clearing memory");
    if (!cleared.ok()) return cleared;
  }
  return absl::OkStatus();
}

absl::Status CudaCalibration::LoadParams(absl::Span<const BlockParams> params) {
  CudaParams all;
  blocks_.resize(params.size());
  for (size_t b = 0; b < params.size(); ++b) all.Add(params[b], &blocks_[b]);
  absl::Status status = Upload(all.values(), &params_);
  if (status.ok()) all.Point(params_.data<float>());
  return status;
}

int64_t CudaCalibration::ChunkSequences() const {
  return shape_.length == 0 ? 0 : Sizes(config_, shape_).chunk / shape_.length;
}

// The same words for every chunk: positions, cache slots, one sequence after another, their tiles.
absl::Status CudaCalibration::PlanAttention() {
  const int64_t sequences = ChunkSequences(), length = shape_.length, blocks = BlocksOf(length);
  tiles_of_sequence_ = cuda::PrefillTiles(length, Int(config_.heads), Int(config_.kv_heads));
  std::vector<int32_t> words;
  const int64_t tokens = sequences * length;
  for (int64_t t = 0; t < tokens; ++t) words.push_back(Int(t % length));
  for (int64_t t = 0; t < tokens; ++t) {
    words.push_back(Int(t / length * blocks * kKvBlock + t % length));
  }
  for (int64_t b = 0; b < sequences * blocks; ++b) words.push_back(Int(b));
  static_assert(sizeof(cuda::AttentionSequence) == 16 && sizeof(cuda::PrefillTile) == 8);
  for (int64_t s = 0; s < sequences; ++s) {
    const cuda::AttentionSequence sequence = {Int(s * length), Int(length), 0, Int(s * blocks)};
    int32_t fields[4];
    std::memcpy(fields, &sequence, sizeof(fields));
    words.insert(words.end(), fields, fields + 4);
  }
  for (int64_t s = 0; s < sequences; ++s) {
    for (int tile = 0; tile < tiles_of_sequence_; ++tile) {
      words.push_back(Int(s));
      words.push_back(tile);
    }
  }
  if (absl::Status s = Upload(words, &plan_); !s.ok()) return s;
  const int32_t* at = plan_.data<int32_t>();
  positions_ = at, slots_ = at + tokens, tables_ = at + 2 * tokens;
  sequences_ = reinterpret_cast<const cuda::AttentionSequence*>(tables_ + sequences * blocks);
  tiles_ = reinterpret_cast<const cuda::PrefillTile*>(sequences_ + sequences);
  return absl::OkStatus();
}

absl::Status CudaCalibration::MakeAngles() {
  std::vector<double> inv_freq;
  std::vector<float> scales;
  for (const Rope& rope : config_.ropes) {
    ropes_.first.push_back(Int(inv_freq.size()));
    ropes_.pairs.push_back(Int(rope.inv_freq.size()));
    inv_freq.insert(inv_freq.end(), rope.inv_freq.begin(), rope.inv_freq.end());
    scales.insert(scales.end(), rope.inv_freq.size(), rope.attention_scale);
  }
  ropes_.sum = Int(inv_freq.size());
  const int64_t tokens = ChunkSequences() * shape_.length;
  if (ropes_.sum == 0 || tokens == 0) return absl::OkStatus();
  cuda::Buffer scale_buffer;
  if (absl::Status s = Upload(inv_freq, &rope_); !s.ok()) return s;
  if (absl::Status s = Upload(scales, &scale_buffer); !s.ok()) return s;
  const cuda::RopeAnglesArgs args = {positions_,
                                     rope_.data<double>(),
                                     scale_buffer.data<float>(),
                                     angles_.data<float2>(),
                                     Int(tokens),
                                     ropes_.sum};
  absl::Status status = Launched(cuda::RopeAngles(args, queue()), "RopeAngles");
  return status.ok() ? stream_.Synchronize() : status;
}

// ---- the residual stream

absl::Status CudaCalibration::Embed(absl::Span<const float> embedding, const ModelParams& params,
                                    absl::Span<const std::vector<int32_t>> sequences,
                                    CudaLoader& loader) {
  cuda::Buffer positions;
  const auto bytes = static_cast<int64_t>(embedding.size() * sizeof(float));
  absl::StatusOr<cuda::Buffer> values = cuda::Buffer::OnDevice(bytes);
  if (!values.ok()) return values.status();
  absl::Status status = loader.Copy(embedding.data(), bytes, values->data());
  if (status.ok()) status = loader.Finish();
  if (status.ok()) status = Upload(params.positions, &positions);
  if (!status.ok()) return status;
  cuda::EmbeddingTable table;
  table.kind = cuda::EmbeddingTable::Kind::kFp32;
  table.values = values->data();
  const float* rows = params.positions.empty()
                          ? nullptr
                          : positions.data<float>() + config_.position_offset * config_.hidden;
  return Embed(table, rows, sequences);
}

absl::Status CudaCalibration::Embed(const cuda::EmbeddingTable& table, const float* position_rows,
                                    absl::Span<const std::vector<int32_t>> sequences) {
  std::vector<int32_t> ids;
  for (const auto& sequence : sequences) ids.insert(ids.end(), sequence.begin(), sequence.end());
  cuda::Buffer tokens;
  if (absl::Status s = Upload(ids, &tokens); !s.ok()) return s;
  const absl::Status status = ForEachChunk(shape_.sequences, [&](const Chunk& chunk) {
    cuda::EmbedArgs args{};
    args.table = table;
    args.tokens = tokens.data<int32_t>() + chunk.first * shape_.length;
    args.positions = positions_, args.position_rows = position_rows;
    args.scale = config_.embedding_scale;
    args.x = chunk.x, args.count = chunk.tokens, args.hidden = Int(config_.hidden);
    return Launched(cuda::Embed(args, queue()), "Embed");
  });
  return status.ok() ? stream_.Synchronize() : status;
}

void CudaCalibration::BeginBlock(int64_t block) {
  block_ = block;
  mlp_weights_ = nullptr;
}

absl::StatusOr<std::vector<float>> CudaCalibration::Hidden(int64_t first, int64_t count,
                                                           CudaLoader& loader) const {
  const int64_t row = shape_.length * config_.hidden;
  std::vector<float> hidden(count * row);
  absl::Status status = stream_.Synchronize();
  if (status.ok()) {
    status = loader.Bring(hidden_.data<float>() + first * row,
                          static_cast<int64_t>(hidden.size() * sizeof(float)), hidden.data());
  }
  if (!status.ok()) return status;
  return hidden;
}

absl::Status CudaCalibration::ForEachChunk(int64_t limit,
                                           absl::FunctionRef<absl::Status(const Chunk&)> visit) {
  const int64_t together = ChunkSequences();
  for (int64_t first = 0; first < limit; first += together) {
    const int64_t count = std::min(limit - first, together);
    const Chunk chunk = {first, count, Int(count * shape_.length),
                         hidden_.data<float>() + first * shape_.length * config_.hidden};
    if (absl::Status s = enter_(); !s.ok()) return s;
    if (absl::Status s = visit(chunk); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// ---- the stages

absl::Status CudaCalibration::Multiply(const void* x, int tokens, int64_t k, const void* weights,
                                       int64_t n, void* y) {
  cuda::GemmCall call;  // column-major: W is k x n, x k x tokens, y n x tokens
  call.transpose_a = true;
  call.m = Int(n), call.n = tokens, call.k = Int(k);
  call.a = weights, call.lda = Int(k);
  call.b = x, call.ldb = Int(k);
  call.c = y, call.ldc = Int(n);
  call.input = call.output = cuda::ElementOf(dtype_);
  return cublas_.Gemm(call);
}

// norm_ = norm(x).
absl::Status CudaCalibration::Norm(const Chunk& chunk, const cuda::NormWeights& norm) {
  cuda::AddNormArgs args{};
  args.x = chunk.x, args.norm = norm, args.h = norm_.data();
  args.rows = chunk.tokens, args.hidden = Int(config_.hidden);
  args.layer_norm = config_.norm == NormKind::kLayer, args.eps = config_.norm_eps;
  args.dtype = dtype_;
  return Launched(cuda::AddNorm(args, queue()), "AddNorm");
}

// x += post(product_ + bias). The kernel takes a norm of the sum, too, which nobody reads.
absl::Status CudaCalibration::AddToResidual(const Chunk& chunk, const float* bias,
                                            const cuda::NormWeights& post) {
  cuda::AddNormArgs args{};
  args.x = chunk.x, args.y = product_.data(), args.bias = bias, args.post = post;
  args.norm = blocks_[block_].mlp_norm, args.h = norm_.data();
  args.rows = chunk.tokens, args.hidden = Int(config_.hidden);
  args.layer_norm = config_.norm == NormKind::kLayer, args.eps = config_.norm_eps;
  args.dtype = dtype_;
  return Launched(cuda::AddNorm(args, queue()), "AddNorm");
}

absl::StatusOr<const void*> CudaCalibration::GroupInput(LinearGroup group, const Chunk& chunk) {
  if (group == LinearGroup::kO) return InnerRows(chunk, config_.q_rows());
  if (group == LinearGroup::kDown && shape_.keeps_activations) {
    return InnerRows(chunk, config_.intermediate);
  }
  if (group == LinearGroup::kDown) {
    if (absl::Status s = RunMlp(chunk, mlp_weights_, activated_.data()); !s.ok()) return s;
    return activated_.data();
  }
  const CudaBlockParams& block = blocks_[block_];
  const auto& norm = group == LinearGroup::kQkv ? block.attn_norm : block.mlp_norm;
  if (absl::Status s = Norm(chunk, norm); !s.ok()) return s;
  return norm_.data();
}

absl::Status CudaCalibration::Inputs(LinearGroup group, int64_t limit,
                                     absl::FunctionRef<absl::Status(const void*, int64_t)> see) {
  return ForEachChunk(limit, [&](const Chunk& chunk) -> absl::Status {
    const auto input = GroupInput(group, chunk);
    return input.ok() ? see(*input, chunk.tokens) : input.status();
  });
}

absl::Status CudaCalibration::Attend(const Chunk& chunk, const void* weights) {
  const int64_t stride = MergedRows(config_);
  const auto input = GroupInput(LinearGroup::kQkv, chunk);
  if (!input.ok()) return input.status();
  absl::Status status =
      Multiply(*input, chunk.tokens, config_.hidden, weights, stride, product_.data());
  if (!status.ok()) return status;
  const CudaBlockParams& block = blocks_[block_];
  uint16_t* rows = product_.data<uint16_t>();
  cuda::FinishQkvArgs finish{};
  finish.q = rows, finish.q_stride = stride;
  finish.k = {rows + config_.q_rows(), stride};
  finish.v = {rows + config_.q_rows() + config_.kv_rows(), stride};
  finish.q_bias = block.q_bias, finish.k_bias = block.k_bias, finish.v_bias = block.v_bias;
  finish.q_norm = block.q_norm, finish.k_norm = block.k_norm;
  if (config_.position == PositionKind::kRope) {
    const int rope = config_.layer[block_].rope;
    finish.angles = angles_.data<float2>() + ropes_.first[rope];
    finish.pairs = ropes_.pairs[rope], finish.angle_stride = ropes_.sum;
  }
  finish.slots = slots_;
  finish.cache = {keys_.data<__half>(), values_.data<__half>(), Int(config_.kv_heads),
                  Int(config_.head_dim), kKvBlock};
  finish.count = chunk.tokens, finish.heads = Int(config_.heads);
  finish.eps = config_.norm_eps, finish.dtype = dtype_;
  status = Launched(cuda::FinishQkv(finish, queue()), "FinishQkv");
  if (!status.ok()) return status;

  cuda::AttentionArgs attention{};
  attention.q = {rows, stride}, attention.out = InnerRows(chunk, config_.q_rows());
  attention.cache = finish.cache, attention.sequences = sequences_, attention.tables = tables_;
  attention.heads = finish.heads, attention.scale = config_.attention_scale;
  attention.softcap = config_.attention_softcap;
  attention.window = Int(config_.layer[block_].sliding_window), attention.dtype = dtype_;
  return Launched(
      cuda::PrefillAttention(attention, tiles_, Int(chunk.count) * tiles_of_sequence_, queue()),
      "PrefillAttention");
}

absl::Status CudaCalibration::RunMlp(const Chunk& chunk, const void* weights, void* out) {
  const auto input = GroupInput(LinearGroup::kGateUp, chunk);
  if (!input.ok()) return input.status();
  const int64_t stride = MlpRows(config_), width = config_.intermediate;
  absl::Status status =
      Multiply(*input, chunk.tokens, config_.hidden, weights, stride, wide_.data());
  if (!status.ok()) return status;
  const CudaBlockParams& block = blocks_[block_];
  const uint16_t* rows = wide_.data<uint16_t>();
  cuda::ActivateArgs args{};
  if (config_.gated_mlp) args.gate = {rows, stride};
  args.up = {config_.gated_mlp ? rows + width : rows, stride};
  args.gate_bias = block.gate_bias, args.up_bias = block.up_bias;
  args.out = out, args.rows = chunk.tokens, args.width = Int(width);
  args.kind = static_cast<cuda::ActivationKind>(config_.activation), args.dtype = dtype_;
  return Launched(cuda::Activate(args, queue()), "Activate");
}

absl::Status CudaCalibration::Advance(LinearGroup group, const void* weights) {
  if (group == LinearGroup::kQkv) {
    return ForEachChunk(shape_.sequences, [&](const Chunk& c) { return Attend(c, weights); });
  }
  if (group == LinearGroup::kGateUp) {
    mlp_weights_ = weights;
    if (!shape_.keeps_activations) return absl::OkStatus();
    return ForEachChunk(shape_.sequences, [&](const Chunk& c) {
      return RunMlp(c, weights, InnerRows(c, config_.intermediate));
    });
  }
  const CudaBlockParams& block = blocks_[block_];
  const bool attention = group == LinearGroup::kO;
  return ForEachChunk(shape_.sequences, [&](const Chunk& c) -> absl::Status {
    const auto input = GroupInput(group, c);
    if (!input.ok()) return input.status();
    absl::Status status = Multiply(*input, c.tokens, InputsOf(config_, group), weights,
                                   config_.hidden, product_.data());
    if (!status.ok()) return status;
    return AddToResidual(c, attention ? block.o_bias : block.down_bias,
                         attention ? block.post_attn_norm : block.post_mlp_norm);
  });
}

}  // namespace babai
