#include "server/engine/cuda_runner_impl.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/activate.h"
#include "kernels/cuda/finish_logits.h"
#include "kernels/cuda/finish_qkv.h"
#include "kernels/cuda/rope_angles.h"
#include "server/engine/cuda_status.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kElement = 2;  // bytes of an activation
constexpr int kMostLogitRows = 64;

// Batch sizes that decode graphs are made for.
constexpr int kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64};

int64_t QkvRowsOf(const ModelConfig& config) { return config.q_rows() + 2 * config.kv_rows(); }
int64_t MlpRowsOf(const ModelConfig& config) {
  return config.intermediate * (config.gated_mlp ? 2 : 1);
}

int PairsOf(const ModelConfig& config) {
  int pairs = 0;
  for (const Rope& rope : config.ropes) pairs += static_cast<int>(rope.inv_freq.size());
  return pairs;
}

cuda::KvCache CacheShape(const ModelConfig& config, const RunnerOptions& options) {
  return {nullptr, nullptr, static_cast<int>(config.kv_heads), static_cast<int>(config.head_dim),
          static_cast<int>(options.block_size)};
}

// Every device buffer of CudaRunner::Work, in bytes.
struct WorkSizes {
  int64_t x, h, qkv, attention, mlp, activated, y, angles, decode, head, logits, chunks;
  WorkSizes(const ModelConfig& config, const RunnerOptions& options) {
    const int64_t t = options.max_step_tokens;
    const int64_t rows = std::min<int64_t>(t, kMostLogitRows);
    x = t * config.hidden * static_cast<int64_t>(sizeof(float));
    h = y = t * config.hidden * kElement;
    qkv = t * QkvRowsOf(config) * kElement;
    attention = t * config.q_rows() * kElement;
    mlp = t * MlpRowsOf(config) * kElement;
    activated = t * config.intermediate * kElement;
    angles = t * PairsOf(config) * static_cast<int64_t>(sizeof(float2));
    decode = cuda::DecodeWorkspaceBytes(static_cast<int>(options.max_sequences),
                                        static_cast<int>(config.heads),
                                        static_cast<int>(config.head_dim));
    head = rows * config.vocab * kElement;
    logits = rows * config.vocab * static_cast<int64_t>(sizeof(float));
    chunks = rows * cuda::LogitChunks(static_cast<int>(config.vocab)) *
             static_cast<int64_t>(sizeof(cuda::LogitChunk));
  }
  int64_t sum() const {
    return x + h + qkv + attention + mlp + activated + y + angles + decode + head + logits + chunks;
  }
};

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

absl::Status Allocate(int64_t bytes, cuda::Buffer* buffer) {
  absl::StatusOr<cuda::Buffer> made = cuda::Buffer::OnDevice(bytes);
  if (made.ok()) *buffer = *std::move(made);
  return made.status();
}

absl::Status Fill(const cuda::Buffer& buffer, int byte, const cuda::Stream& stream) {
  if (buffer.bytes() == 0) return absl::OkStatus();
  return cuda::FromCuda(cudaMemsetAsync(buffer.data(), byte, buffer.bytes(), stream.get()),
                        "clearing memory");
}

template <typename T>
absl::Status Upload(const std::vector<T>& values, cuda::Buffer* buffer) {
  const int64_t bytes = values.size() * sizeof(T);
  if (absl::Status s = Allocate(bytes, buffer); !s.ok()) return s;
  if (bytes == 0) return absl::OkStatus();
  return cuda::FromCuda(cudaMemcpy(buffer->data(), values.data(), bytes, cudaMemcpyHostToDevice),
                        "copying parameters");
}

// The first that is not OK; what follows it does not matter then.
class FirstError {
 public:
  void operator+=(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

}  // namespace

absl::Status CudaRunner::Check(const ModelConfig& config, const RunnerOptions& options) {
  const auto refuse = [](const std::string& message) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, "", message);
  };
  if (config.head_dim < 8 || config.head_dim > 256 || config.head_dim % 8 != 0) {
    return refuse(absl::StrCat("the GPU kernels take head sizes 8 to 256 in steps of 8, not ",
                               config.head_dim));
  }
  if (config.kv_heads < 1 || config.heads % config.kv_heads != 0) {
    return refuse("key/value heads must divide the heads");
  }
  if (config.hidden % 8 != 0 || config.intermediate % 8 != 0 ||
      config.hidden > cuda::kMaxNormWidth) {
    return refuse(absl::StrCat("the GPU kernels take widths in steps of 8, up to ",
                               cuda::kMaxNormWidth, ", not ", config.hidden, " and ",
                               config.intermediate));
  }
  if (options.kv_dtype != DType::kF16) return refuse("the GPU's KV cache is fp16");
  return absl::OkStatus();
}

int64_t CudaRunner::KvBytesPerBlock(const ModelConfig& config, const RunnerOptions& options) {
  return config.layers * 2 * CacheShape(config, options).block_values() * kElement;
}

int64_t CudaRunner::WorkBytes(const ModelConfig& config, const RunnerOptions& options,
                              const cuda::DeviceLimits& limits, bool needs_dense) {
  return WorkSizes(config, options).sum() + CudaBatch::Bytes(config, options) +
         cuda::PackedGemmWorkspaceBytes(limits) +
         (needs_dense ? cuda::DenseGemm::kWorkspaceBytes : 0);
}

CudaRunner::CudaRunner(const ModelConfig& config, std::unique_ptr<CudaWeights> weights,
                       const RunnerOptions& options)
    : config_(config), weights_(std::move(weights)), options_(options) {}

CudaRunner::~CudaRunner() {
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph.exec);
}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Create(const ModelConfig& config,
                                                               std::unique_ptr<CudaWeights> weights,
                                                               const RunnerOptions& options) {
  std::unique_ptr<CudaRunner> runner(new CudaRunner(config, std::move(weights), options));
  if (absl::Status made = runner->Allocate(); !made.ok()) return DeviceRefusal(made);
  return runner;
}

absl::Status CudaRunner::Allocate() {
  absl::StatusOr<cuda::DeviceLimits> limits = cuda::GetDeviceLimits(0);
  if (!limits.ok()) return limits.status();
  gemms_.limits = *limits;
  // Before a quantize job's kernels, which run beside this process's answers.
  absl::StatusOr<cuda::Stream> stream = cuda::Stream::Make(cuda::Stream::Priority::kUrgent);
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  constexpr int kEarlyStartMajor = 9;  // compute capability that knows it
  queue_ = {stream_.get(), limits->major >= kEarlyStartMajor};
  if (weights_->needs_dense) {
    absl::StatusOr<std::unique_ptr<cuda::DenseGemm>> dense = cuda::DenseGemm::Make(stream_);
    if (!dense.ok()) return dense.status();
    gemms_.dense = *std::move(dense);
  }
  absl::StatusOr<CudaBatch> batch = CudaBatch::Make(config_, options_);
  if (!batch.ok()) return batch.status();
  batch_ = std::make_unique<CudaBatch>(*std::move(batch));

  const WorkSizes sizes(config_, options_);
  FirstError error;
  for (const auto& [bytes, buffer] :
       {std::pair{cuda::PackedGemmWorkspaceBytes(*limits), &gemms_.packed_workspace},
        std::pair{sizes.x, &work_.x}, std::pair{sizes.h, &work_.h},
        std::pair{sizes.qkv, &work_.qkv}, std::pair{sizes.attention, &work_.attention},
        std::pair{sizes.mlp, &work_.mlp}, std::pair{sizes.activated, &work_.activated},
        std::pair{sizes.y, &work_.y}, std::pair{sizes.angles, &work_.angles},
        std::pair{sizes.decode, &work_.decode}, std::pair{sizes.head, &work_.head},
        std::pair{sizes.logits, &work_.logits}, std::pair{sizes.chunks, &work_.chunks}}) {
    error += babai::Allocate(bytes, buffer);
    if (!error.status().ok()) return error.status();
    // Counters start at 0, and padded rows of a graph are never written: any number will do there.
    error += Fill(*buffer, buffer == &gemms_.packed_workspace ? 0xff : 0, stream_);
  }
  for (const auto& [bytes, buffer] :
       {std::pair{sizes.logits, &host_logits_},
        std::pair{LogitRows() * static_cast<int64_t>(sizeof(cuda::RowResult)), &host_results_}}) {
    absl::StatusOr<cuda::Buffer> host = cuda::Buffer::Pinned(bytes);
    if (!host.ok()) return host.status();
    *buffer = *std::move(host);
  }
  error += AllocateCache();
  error += LoadRopes();
  error += stream_.Synchronize();
  return error.status();
}

absl::Status CudaRunner::AllocateCache() {
  const int64_t bytes =
      options_.kv_blocks * CacheShape(config_, options_).block_values() * kElement;
  cache_.resize(config_.layers);
  for (auto& [keys, values] : cache_) {
    for (cuda::Buffer* buffer : {&keys, &values}) {
      if (absl::Status s = babai::Allocate(bytes, buffer); !s.ok()) return s;
      if (absl::Status s = Fill(*buffer, 0, stream_); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::LoadRopes() {
  std::vector<double> inv_freq;
  std::vector<float> scales;
  for (const Rope& rope : config_.ropes) {
    ropes_.first.push_back(static_cast<int>(inv_freq.size()));
    ropes_.pairs.push_back(static_cast<int>(rope.inv_freq.size()));
    inv_freq.insert(inv_freq.end(), rope.inv_freq.begin(), rope.inv_freq.end());
    scales.insert(scales.end(), rope.inv_freq.size(), rope.attention_scale);
  }
  ropes_.sum = static_cast<int>(inv_freq.size());
  if (absl::Status s = Upload(inv_freq, &ropes_.inv_freq); !s.ok()) return s;
  return Upload(scales, &ropes_.scales);
}

int CudaRunner::LogitRows() const {
  return static_cast<int>(std::min<int64_t>(options_.max_step_tokens, kMostLogitRows));
}

// --- the kernels of a step

absl::Status CudaRunner::Launched(cudaError_t error, absl::string_view what) {
  wide_before_ = false;
  return cuda::FromCuda(error, what);
}

// Products that follow one another take turns (kernels/cuda/stream_gemm.h).
absl::Status CudaRunner::Product(const CudaLinear& linear, const void* x, int m, void* y,
                                 const cuda::GemmEnds& ends) {
  const cuda::Turn turn = wide_before_ ? cuda::Turn::kNarrow : cuda::Turn::kWide;
  wide_before_ = linear.takes_ends() && turn == cuda::Turn::kWide;
  return linear.Run(x, m, y, weights_->dtype, gemms_, queue_, {ends, turn});
}

absl::Status CudaRunner::NormedProduct(const cuda::AddNormArgs& norm, const CudaLinear& linear,
                                       void* y, cuda::GemmEnds ends) {
  const bool plain = norm.y == nullptr && norm.row == nullptr && !norm.layer_norm;
  if (plain && linear.takes_ends() && linear.TakesNorm(norm.rows, gemms_)) {
    ends.norm = norm.norm.weight, ends.eps = norm.eps;
    return Product(linear, norm.x, norm.rows, y, ends);
  }
  const absl::Status normed = Launched(cuda::AddNorm(norm, queue_), "AddNorm");
  return normed.ok() ? Product(linear, norm.h, norm.rows, y, ends) : normed;
}

absl::Status CudaRunner::LastProduct(const CudaLinear& linear, const void* x, int m, bool adds) {
  cuda::GemmEnds ends;
  if (adds) ends.output = cuda::GemmOutput::kAdd;
  return Product(linear, x, m, adds ? work_.x.data() : work_.y.data(), ends);
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
    const cuda::DecodePlan plan = {shape.decodes, shape.splits, MostSplits(shape.decodes),
                                   work_.decode.data(), static_cast<int>(options_.max_sequences)};
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
  error += NormedProduct(NormAfterFeedForward(b - 1, m), block.qkv, work_.qkv.data(), {});
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
    cuda::GemmEnds ends;
    ends.output = cuda::GemmOutput::kGate;
    ends.gate = config_.activation == Activation::kSilu ? cuda::kSiluGate : cuda::kGeluTanhGate;
    error += NormedProduct(norm, block.gate_up, work_.activated.data(), ends);
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

// --- graphs

absl::StatusOr<CudaRunner::Graph*> CudaRunner::GraphOf(const CudaStepShape& shape) {
  const GraphKey key = {shape.tokens, shape.splits};
  if (const auto known = graphs_.find(key); known != graphs_.end()) return &known->second;
  absl::Status status = cuda::FromCuda(
      cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "capturing a step");
  if (!status.ok()) return status;
  status = EnqueueBlocks(shape);
  if (status.ok()) status = EnqueueHead(0, shape.logits, Rows::kAllInOrder);
  cudaGraph_t captured = nullptr;
  const absl::Status ended =
      cuda::FromCuda(cudaStreamEndCapture(stream_.get(), &captured), "capturing a step");
  if (status.ok()) status = ended;
  Graph graph;
  if (status.ok())
    status = cuda::FromCuda(cudaGraphInstantiate(&graph.exec, captured, 0), "a graph");
  if (captured != nullptr) cudaGraphDestroy(captured);
  if (!status.ok()) return status;
  return &graphs_.emplace(key, graph).first->second;
}

absl::Status CudaRunner::RunWhole(const CudaStepShape& shape) {
  if (seen_.insert({shape.tokens, shape.splits}).second) {  // may not come again
    const absl::Status enqueued = EnqueueBlocks(shape);
    return enqueued.ok() ? EnqueueHead(0, shape.logits, Rows::kAllInOrder) : enqueued;
  }
  const absl::StatusOr<Graph*> graph = GraphOf(shape);
  if (!graph.ok()) return graph.status();
  return cuda::FromCuda(cudaGraphLaunch((*graph)->exec, stream_.get()), "a step");
}

// --- steps

// To pinned memory: runs of rows that are wanted there.
absl::Status CudaRunner::CopyLogits(int first, int count, absl::Span<const TokenChoice> choices) {
  const auto wanted = [&](int row) { return choices.empty() || !choices[first + row].by_runner; };
  const int64_t vocab = config_.vocab;
  FirstError error;
  for (int row = 0, end; row < count; row = end + 1) {
    for (end = row; end < count && wanted(end);) ++end;
    if (end == row) continue;
    error +=
        cuda::FromCuda(cudaMemcpyAsync(host_logits_.data<float>() + row * vocab,
                                       work_.logits.data<float>() + row * vocab,
                                       (end - row) * vocab * static_cast<int64_t>(sizeof(float)),
                                       cudaMemcpyDeviceToHost, stream_.get()),
                       "reading logits");
  }
  return error.status();
}

absl::Status CudaRunner::ReadRows(int first, int count, absl::Span<TokenChoice> choices,
                                  float* logits) {
  const auto* results = host_results_.data<cuda::RowResult>();
  FirstError error;
  error += CopyLogits(first, count, choices);
  error += cuda::FromCuda(
      cudaMemcpyAsync(host_results_.data(), batch_->results() + first,
                      count * sizeof(cuda::RowResult), cudaMemcpyDeviceToHost, stream_.get()),
      "reading tokens");
  error += stream_.Synchronize();
  if (!error.status().ok()) return error.status();
  const int64_t vocab = config_.vocab;
  for (int row = 0; row < count; ++row) {
    if (results[row].not_finite != 0) {
      return Refuse(absl::StatusCode::kInternal, reason::kNonFiniteLogits, "",
                    "the model produced a NaN or an infinity");
    }
    if (!choices.empty() && choices[first + row].by_runner) {
      choices[first + row].token = results[row].token;
      continue;
    }
    const float* from = host_logits_.data<float>() + row * vocab;
    float* to = logits + (first + row) * vocab;
    if (to != from) std::memcpy(to, from, vocab * sizeof(float));
  }
  return absl::OkStatus();
}

// Refusals of the model's own stay as they are; what the device reports becomes one, and a lost
// device is remembered.
absl::Status CudaRunner::Guard(absl::Status status) {
  if (status.ok() || !ReasonOf(status).empty()) return status;
  const absl::Status refusal = DeviceRefusal(status);
  if (absl::IsUnavailable(refusal)) lost_ = refusal;
  return refusal;
}

absl::Status CudaRunner::Step(const StepBatch& batch, float* logits) {
  if (!lost_.ok()) return lost_;
  if (batch.tokens.empty()) return absl::OkStatus();
  CudaStepShape shape = batch_->Fill(batch);
  const int wanted = shape.logits;
  const auto* bucket = std::lower_bound(std::begin(kBuckets), std::end(kBuckets), shape.tokens);
  // A graph takes decode steps that want all their logits, in order.
  const bool whole = bucket != std::end(kBuckets) && *bucket <= LogitRows() &&
                     *bucket <= options_.max_sequences && shape.decodes == shape.tokens &&
                     wanted == shape.tokens &&
                     std::is_sorted(batch.logits_rows.begin(), batch.logits_rows.end());
  if (whole) {
    batch_->Pad(*bucket, &shape);
    int splits = 1;
    while (splits < shape.splits) splits *= 2;
    shape.splits = splits;
  }
  FirstError error;
  error += batch_->Send(stream_);
  if (whole) {
    error += RunWhole(shape);
    if (error.status().ok()) error += ReadRows(0, wanted, batch.choices, logits);
    return Guard(error.status());
  }
  error += EnqueueBlocks(shape);
  for (int first = 0; first < wanted && error.status().ok(); first += LogitRows()) {
    const int count = std::min(LogitRows(), wanted - first);
    error += EnqueueHead(first, count, Rows::kWanted);
    error += ReadRows(first, count, batch.choices, logits);
  }
  if (wanted == 0) error += stream_.Synchronize();  // the pinned words may be overwritten
  return Guard(error.status());
}

void CudaRunner::CopyKvBlock(int32_t from, int32_t to) {
  const int64_t bytes = CacheShape(config_, options_).block_values() * kElement;
  FirstError error;
  for (const auto& [keys, values] : cache_) {
    for (const cuda::Buffer* buffer : {&keys, &values}) {
      uint8_t* blocks = buffer->data<uint8_t>();
      error += cuda::FromCuda(cudaMemcpyAsync(blocks + to * bytes, blocks + from * bytes, bytes,
                                              cudaMemcpyDeviceToDevice, stream_.get()),
                              "copying a block");
    }
  }
  if (!error.status().ok() && lost_.ok()) lost_ = DeviceRefusal(error.status());
}

}  // namespace babai
