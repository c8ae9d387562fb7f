#include "server/engine/cuda_weights.h"

#include <string>
#include <utility>
#include <variant>

#include "server/engine/block.h"
#include "server/engine/cuda_params.h"
#include "server/engine/cuda_status.h"
#include "server/engine/weight_names.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::StatusOr<cuda::Buffer> Upload(const CudaParams& params, CudaLoader& loader) {
  const int64_t bytes = params.values().size() * sizeof(float);
  absl::StatusOr<cuda::Buffer> buffer = cuda::Buffer::OnDevice(bytes);
  if (!buffer.ok()) return buffer;
  params.Point(buffer->data<float>());
  absl::Status copied = loader.Copy(params.values().data(), bytes, buffer->data());
  if (!copied.ok()) return copied;
  return buffer;
}

absl::Status LoadLinear(const PackedModel& model, const std::vector<std::string>& names,
                        int64_t rows, int64_t cols, CudaLoader& loader, CudaWeights& weights,
                        CudaLinear* out, CudaLinear::Order wished = CudaLinear::Order::kStacked) {
  absl::StatusOr<CudaLinear> linear = CudaLinear::Load(model, names, weights.dtype, loader, wished);
  if (!linear.ok()) return linear.status();
  *out = *std::move(linear);
  weights.bytes += out->bytes();
  weights.needs.Include(out->needs());
  if (out->rows() == rows && out->cols() == cols) return absl::OkStatus();
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidModelFile, names[0],
                "its shape does not fit the model's configuration");
}

absl::Status LoadBlock(const PackedModel& model, int64_t b, CudaLoader& loader, CudaParams* params,
                       CudaWeights& weights) {
  const ModelConfig& config = model.config();
  CudaBlock& block = weights.blocks[b];
  const absl::StatusOr<BlockParams> read = LoadBlockParams(config, b, SourceOf(model));
  if (!read.ok()) return read.status();
  params->Add(*read, &block);
  const BlockNames names = NamesOf(config, b);
  const int64_t qkv_rows = config.q_rows() + 2 * config.kv_rows();
  const int64_t mlp_rows = config.intermediate * (config.gated_mlp ? 2 : 1);
  using Order = CudaLinear::Order;
  const auto load = [&](const std::vector<std::string>& stack, int64_t rows, int64_t cols,
                        CudaLinear* out, Order wished = Order::kStacked) {
    return LoadLinear(model, stack, rows, cols, loader, weights, out, wished);
  };
  const bool biased = !read->gate_bias.empty() || !read->up_bias.empty();
  const bool known =
      config.activation == Activation::kSilu || config.activation == Activation::kGeluTanh;
  const Order mlp = config.gated_mlp && known && !biased ? Order::kInEights : Order::kStacked;
  absl::Status status = load(names.qkv, qkv_rows, config.hidden, &block.qkv);
  if (status.ok()) status = load(names.o, config.hidden, config.q_rows(), &block.o);
  if (status.ok()) status = load(names.gate_up, mlp_rows, config.hidden, &block.gate_up, mlp);
  if (status.ok()) status = load(names.down, config.hidden, config.intermediate, &block.down);
  return status;
}

// A copy of raw bytes on the device, which `weights` keeps.
absl::StatusOr<const void*> Keep(const void* from, int64_t bytes, CudaLoader& loader,
                                 CudaWeights& weights) {
  absl::StatusOr<cuda::Buffer> buffer = cuda::Buffer::OnDevice(bytes);
  if (!buffer.ok()) return buffer.status();
  if (absl::Status s = loader.Copy(from, bytes, buffer->data()); !s.ok()) return s;
  weights.bytes += bytes;
  weights.embedding_of.push_back(*std::move(buffer));
  return weights.embedding_of.back().data();
}

absl::Status LoadPackedEmbedding(const PackedModel& model, CudaLoader& loader,
                                 CudaWeights& weights) {
  const absl::StatusOr<PackedIntView> view = model.PackedIntTensor(kEmbeddingName);
  if (!view.ok()) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedFormat, kEmbeddingName,
                  "rows are looked up in plain packed integers or dense values only");
  }
  cuda::EmbeddingTable& table = weights.embedding;
  table.kind = cuda::EmbeddingTable::Kind::kPacked;
  table.bits = view->bits, table.group = static_cast<int>(view->group);
  const auto codes = Keep(view->codes.data(), view->codes.size(), loader, weights);
  if (!codes.ok()) return codes.status();
  const auto scales = Keep(view->scales.data(), view->scales.size() * 2, loader, weights);
  if (!scales.ok()) return scales.status();
  const auto zeros = Keep(view->zeros.data(), view->zeros.size(), loader, weights);
  if (!zeros.ok()) return zeros.status();
  table.values = *codes, table.scales = static_cast<const uint16_t*>(*scales);
  table.zeros = static_cast<const uint8_t*>(*zeros);  // null if there are none
  return absl::OkStatus();
}

absl::Status LoadDenseEmbedding(const PackedModel& model, CudaLoader& loader,
                                CudaWeights& weights) {
  std::vector<int64_t> shape;
  const auto bytes = model.DenseTensor(kEmbeddingName, &shape);
  if (!bytes.ok()) return bytes.status();
  using Kind = cuda::EmbeddingTable::Kind;
  const DType dtype = model.Format(kEmbeddingName).dtype;
  weights.embedding.kind = dtype == DType::kF16    ? Kind::kFp16
                           : dtype == DType::kBF16 ? Kind::kBf16
                                                   : Kind::kFp32;
  const auto values = Keep(bytes->data(), bytes->size(), loader, weights);
  if (!values.ok()) return values.status();
  weights.embedding.values = *values;
  return absl::OkStatus();
}

absl::Status Load(const PackedModel& model, CudaLoader& loader, CudaWeights& weights) {
  const ModelConfig& config = model.config();
  CudaParams params;
  weights.blocks.resize(config.layers);
  for (int64_t b = 0; b < config.layers; ++b) {
    if (absl::Status s = LoadBlock(model, b, loader, &params, weights); !s.ok()) return s;
  }
  const absl::StatusOr<ModelParams> read = LoadModelParams(config, SourceOf(model));
  if (!read.ok()) return read.status();
  params.Add(read->final_norm, &weights.final_norm);
  params.Add(read->head_bias, &weights.head_bias);
  params.Add(read->positions, &weights.positions, config.position_offset * config.hidden);
  absl::Status head = LoadLinear(model, {HeadName(config)}, config.vocab, config.hidden, loader,
                                 weights, &weights.head);
  if (!head.ok()) return head;
  const bool packed = model.Format(kEmbeddingName).packed();
  absl::Status embedding = packed ? LoadPackedEmbedding(model, loader, weights)
                                  : LoadDenseEmbedding(model, loader, weights);
  if (!embedding.ok()) return DeviceRefusal(embedding, kEmbeddingName);
  absl::StatusOr<cuda::Buffer> uploaded = Upload(params, loader);
  if (!uploaded.ok()) return DeviceRefusal(uploaded.status());
  weights.params = *std::move(uploaded);
  weights.bytes += weights.params.bytes();
  return DeviceRefusal(loader.Finish());
}

// The parameters that are vectors, from the sizes in the manifest alone.
int64_t VectorBytes(const PackedModel& model) {
  int64_t bytes = 0;
  for (const auto& [name, format] : model.manifest().tensors) {
    int64_t values = 1;
    for (const int64_t side : format.shape) values *= side;
    const bool vector = format.shape.size() == 1 || name == "embed_positions.weight";
    if (vector) bytes += CudaParams::Padded(values) * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

absl::StatusOr<int64_t> EmbeddingBytes(const PackedModel& model) {
  if (model.Format(kEmbeddingName).packed()) {
    const absl::StatusOr<PackedLinearView> view = model.LinearTensor(kEmbeddingName);
    if (!view.ok()) return view.status();
    const auto* plain = std::get_if<PackedIntView>(&view->base);
    if (plain == nullptr) return 0;
    return plain->codes.size() + plain->scales.size() * 2 + plain->zeros.size();
  }
  std::vector<int64_t> shape;
  const auto bytes = model.DenseTensor(kEmbeddingName, &shape);
  if (!bytes.ok()) return bytes.status();
  return bytes->size();
}

}  // namespace

cuda::Dtype ActivationType(const ModelConfig& config) {
  return config.post_norms ? cuda::Dtype::kBf16 : cuda::Dtype::kFp16;
}

absl::StatusOr<std::unique_ptr<CudaWeights>> LoadCudaWeights(const PackedModel& model) {
  if (absl::Status present = CheckPresent(model); !present.ok()) return present;
  absl::StatusOr<std::unique_ptr<CudaLoader>> loader = CudaLoader::Make();
  if (!loader.ok()) return DeviceRefusal(loader.status());
  auto weights = std::make_unique<CudaWeights>();
  weights->dtype = ActivationType(model.config());
  if (absl::Status loaded = Load(model, **loader, *weights); !loaded.ok()) return loaded;
  return weights;
}

absl::StatusOr<CudaLinearPlan> PlanCudaWeights(const PackedModel& model) {
  if (absl::Status present = CheckPresent(model); !present.ok()) return present;
  const absl::StatusOr<int64_t> embedding = EmbeddingBytes(model);
  if (!embedding.ok()) return embedding.status();
  CudaLinearPlan sum = {*embedding + VectorBytes(model), {}};
  for (const std::string& name : ProductNames(model.config())) {
    const absl::StatusOr<CudaLinearPlan> plan = PlanCudaLinear(model, name);
    if (!plan.ok()) return plan;
    sum.bytes += plan->bytes;
    sum.needs.Include(plan->needs);
  }
  return sum;
}

}  // namespace babai
