#include "server/engine/cuda_runner_impl.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/finish_logits.h"
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

}  // namespace

cuda::KvCache CudaRunner::CacheShape(const ModelConfig& config, const RunnerOptions& options) {
  return {nullptr, nullptr, static_cast<int>(config.kv_heads), static_cast<int>(config.head_dim),
          static_cast<int>(options.block_size)};
}

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
                              const cuda::DeviceLimits& limits, const CudaGemmNeeds& needs) {
  return WorkSizes(config, options).sum() + CudaBatch::Bytes(config, options) +
         cuda::PackedGemmWorkspaceBytes(limits) +
         CudaScratch::TurnedBytes(needs.scratch, options.max_step_tokens) +
         CudaScratch::TransposedBytes(needs.scratch, options.max_step_tokens) +
         (needs.decoded ? kDecodedBytes : 0) + (needs.dense ? cuda::DenseGemm::kWorkspaceBytes : 0);
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
  if (weights_->needs.dense) {
    absl::StatusOr<std::unique_ptr<cuda::DenseGemm>> dense = cuda::DenseGemm::Make(stream_);
    if (!dense.ok()) return dense.status();
    gemms_.dense = *std::move(dense);
  }
  absl::StatusOr<CudaBatch> batch = CudaBatch::Make(config_, options_);
  if (!batch.ok()) return batch.status();
  batch_ = std::make_unique<CudaBatch>(*std::move(batch));

  const WorkSizes sizes(config_, options_);
  const CudaScratch::Needs& scratch = weights_->needs.scratch;
  const int64_t tokens = options_.max_step_tokens;
  FirstError error;
  for (const auto& [bytes, buffer] :
       {std::pair{cuda::PackedGemmWorkspaceBytes(*limits), &gemms_.packed_workspace},
        std::pair{CudaScratch::TurnedBytes(scratch, tokens), &gemms_.scratch.turned},
        std::pair{CudaScratch::TransposedBytes(scratch, tokens), &gemms_.scratch.transposed},
        std::pair{weights_->needs.decoded ? kDecodedBytes : 0, &gemms_.scratch.decoded},
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
  auto frequencies = cuda::Buffer::Of<double>(inv_freq);
  auto attention_scales = cuda::Buffer::Of<float>(scales);
  if (!frequencies.ok()) return frequencies.status();
  if (!attention_scales.ok()) return attention_scales.status();
  ropes_.inv_freq = *std::move(frequencies), ropes_.scales = *std::move(attention_scales);
  return absl::OkStatus();
}

int CudaRunner::LogitRows() const {
  return static_cast<int>(std::min<int64_t>(options_.max_step_tokens, kMostLogitRows));
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
