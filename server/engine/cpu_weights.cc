#include "server/engine/cpu_weights.h"

#include <cstring>
#include <utility>

#include "server/engine/weight_names.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status CheckShape(const Linear& linear, const std::string& name, int64_t rows, int64_t cols) {
  if (linear.rows() == rows && linear.cols() == cols) return absl::OkStatus();
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidModelFile, name,
                "its shape does not fit the model's configuration");
}

template <typename Source>
absl::Status LoadLinear(const Source& source, const std::vector<std::string>& names, int64_t rows,
                        int64_t cols, Linear* out) {
  absl::StatusOr<Linear> linear = Linear::Make(source, names);
  if (!linear.ok()) return linear.status();
  *out = *std::move(linear);
  return CheckShape(*out, names[0], rows, cols);
}

template <typename Source>
absl::Status LoadBlock(const ModelConfig& config, const Source& source, int64_t b,
                       CpuBlock* block) {
  absl::StatusOr<BlockParams> params = LoadBlockParams(config, b, SourceOf(source));
  if (!params.ok()) return params.status();
  block->params = *std::move(params);
  const BlockNames names = NamesOf(config, b);
  const int64_t attention_rows = config.q_rows() + 2 * config.kv_rows();
  const int64_t mlp_rows = config.intermediate * (config.gated_mlp ? 2 : 1);
  absl::Status status = LoadLinear(source, names.qkv, attention_rows, config.hidden, &block->qkv);
  if (status.ok()) status = LoadLinear(source, names.o, config.hidden, config.q_rows(), &block->o);
  if (status.ok()) {
    status = LoadLinear(source, names.gate_up, mlp_rows, config.hidden, &block->gate_up);
  }
  if (status.ok()) {
    status = LoadLinear(source, names.down, config.hidden, config.intermediate, &block->down);
  }
  return status;
}

// Everything but the embedding rows.
template <typename Source>
absl::StatusOr<std::unique_ptr<CpuWeights>> Load(const ModelConfig& config, const Source& source) {
  auto weights = std::make_unique<CpuWeights>();
  absl::StatusOr<ModelParams> params = LoadModelParams(config, SourceOf(source));
  if (!params.ok()) return params.status();
  weights->params = *std::move(params);
  weights->blocks.resize(config.layers);
  for (int64_t b = 0; b < config.layers; ++b) {
    CpuBlock& block = weights->blocks[b];
    if (absl::Status status = LoadBlock(config, source, b, &block); !status.ok()) return status;
    weights->bytes +=
        block.qkv.bytes() + block.o.bytes() + block.gate_up.bytes() + block.down.bytes();
  }
  absl::Status head =
      LoadLinear(source, {HeadName(config)}, config.vocab, config.hidden, &weights->head);
  if (!head.ok()) return head;
  weights->bytes += weights->head.bytes();
  return weights;
}

using RowReader = std::function<void(int32_t, float*)>;

// Rows straight from the mapped file: a step reads few of them.
absl::StatusOr<RowReader> PackedRows(std::shared_ptr<const PackedModel> model) {
  absl::StatusOr<PackedIntView> view = model->PackedIntTensor(kEmbeddingName);
  if (!view.ok()) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedFormat, kEmbeddingName,
                  "rows are looked up in plain packed integers or dense values only");
  }
  return RowReader([model = std::move(model), view = *view](int32_t id, float* row) {
    DecodeRows(view, id, id + 1, row);
  });
}

absl::StatusOr<RowReader> DenseRows(std::shared_ptr<const PackedModel> model) {
  std::vector<int64_t> shape;
  absl::StatusOr<absl::Span<const uint8_t>> bytes = model->DenseTensor(kEmbeddingName, &shape);
  if (!bytes.ok()) return bytes.status();
  const FloatType type = KernelType(model->Format(kEmbeddingName).dtype);
  const int64_t cols = model->config().hidden, row_bytes = cols * FloatTypeBytes(type);
  return RowReader([model = std::move(model), data = bytes->data(), type, cols, row_bytes](
                       int32_t id, float* row) {
    const uint8_t* source = data + id * row_bytes;
    if (type == FloatType::kF32) {
      std::memcpy(row, source, row_bytes);
      return;
    }
    for (int64_t c = 0; c < cols; ++c) {
      uint16_t bits;
      std::memcpy(&bits, source + 2 * c, 2);
      row[c] = type == FloatType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
  });
}

// Neighbours of one format are padded together; the plan may be some rows above the truth.
absl::StatusOr<int64_t> StackBytes(const PackedModel& model,
                                   const std::vector<std::string>& names) {
  int64_t sum = 0;
  for (const std::string& name : names) {
    const absl::StatusOr<int64_t> bytes = LinearBytes(model, name);
    if (!bytes.ok()) return bytes;
    sum += *bytes;
  }
  return sum;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuWeights>> LoadCpuWeights(
    std::shared_ptr<const PackedModel> model) {
  if (absl::Status present = CheckPresent(*model); !present.ok()) return present;
  absl::StatusOr<std::unique_ptr<CpuWeights>> weights = Load(model->config(), *model);
  if (!weights.ok()) return weights;
  const bool packed = model->Format(kEmbeddingName).packed();
  absl::StatusOr<RowReader> rows = packed ? PackedRows(model) : DenseRows(model);
  if (!rows.ok()) return rows.status();
  (*weights)->embedding_row = *std::move(rows);
  return weights;
}

absl::StatusOr<std::unique_ptr<CpuWeights>> LoadCpuWeights(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  absl::StatusOr<std::unique_ptr<CpuWeights>> weights = Load(config, checkpoint);
  if (!weights.ok()) return weights;
  if (config.tied_embedding) {
    (*weights)->embedding_row = [head = &(*weights)->head](int32_t id, float* row) {
      head->ReadDenseRow(id, row);
    };
    return weights;
  }
  absl::StatusOr<std::vector<float>> rows = checkpoint.Read(kEmbeddingName);
  if (!rows.ok()) return rows.status();
  (*weights)->bytes += rows->size() * sizeof(float);
  (*weights)->embedding_row = [rows = *std::move(rows), cols = config.hidden](int32_t id,
                                                                              float* row) {
    std::memcpy(row, rows.data() + id * cols, cols * sizeof(float));
  };
  return weights;
}

absl::StatusOr<int64_t> PlanWeightBytes(const PackedModel& model) {
  if (absl::Status present = CheckPresent(model); !present.ok()) return present;
  return StackBytes(model, ProductNames(model.config()));
}

}  // namespace babai
