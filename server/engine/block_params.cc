#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/engine/block.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

absl::Status WrongTensor(std::string_view name, std::string_view rule) {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidModelFile, name, rule);
}

// A vector of `size` floats, or an empty one where the source has none.
absl::StatusOr<std::vector<float>> ReadOptional(const TensorSource& source, const std::string& name,
                                                int64_t size) {
  if (!source.has(name)) return std::vector<float>();
  absl::StatusOr<std::vector<float>> values = source.read(name);
  if (!values.ok()) return values;
  if (static_cast<int64_t>(values->size()) != size) {
    return WrongTensor(name,
                       absl::StrCat("has ", values->size(), " values, the config says ", size));
  }
  return values;
}

absl::StatusOr<NormParams> ReadNorm(const ModelConfig& config, const TensorSource& source,
                                    const std::string& stem, int64_t size) {
  NormParams norm;
  absl::StatusOr<std::vector<float>> weight = ReadOptional(source, stem + ".weight", size);
  if (!weight.ok()) return weight.status();
  if (weight->empty()) return WrongTensor(stem + ".weight", "is missing");
  norm.weight = *std::move(weight);
  for (float& w : norm.weight) w += config.norm_weight_offset;
  absl::StatusOr<std::vector<float>> bias = ReadOptional(source, stem + ".bias", size);
  if (!bias.ok()) return bias.status();
  norm.bias = *std::move(bias);
  return norm;
}

struct NormSlot {
  const char* name;
  int64_t size;
  NormParams* norm;
};

struct BiasSlot {
  const char* name;
  int64_t size;
  std::vector<float>* bias;
};

}  // namespace

TensorSource SourceOf(const Checkpoint& checkpoint) {
  return {[&checkpoint](std::string_view name) { return checkpoint.Find(name) != nullptr; },
          [&checkpoint](std::string_view name) { return checkpoint.Read(name); }};
}

TensorSource SourceOf(const PackedModel& model) {
  return {[&model](std::string_view name) { return model.Has(name); },
          [&model](std::string_view name) { return model.ReadFloat(name); }};
}

std::string BlockTensor(int64_t block, std::string_view name) {
  return absl::StrCat("blocks.", block, ".", absl::string_view(name.data(), name.size()));
}

absl::StatusOr<BlockParams> LoadBlockParams(const ModelConfig& config, int64_t block,
                                            const TensorSource& source) {
  BlockParams params;
  std::vector<NormSlot> norms = {{"attn_norm", config.hidden, &params.attn_norm},
                                 {"mlp_norm", config.hidden, &params.mlp_norm}};
  if (config.post_norms) {
    norms.push_back({"post_attn_norm", config.hidden, &params.post_attn_norm});
    norms.push_back({"post_mlp_norm", config.hidden, &params.post_mlp_norm});
  }
  if (config.qk_norm) {
    norms.push_back({"q_norm", config.head_dim, &params.q_norm});
    norms.push_back({"k_norm", config.head_dim, &params.k_norm});
  }
  for (const NormSlot& slot : norms) {
    absl::StatusOr<NormParams> norm =
        ReadNorm(config, source, BlockTensor(block, slot.name), slot.size);
    if (!norm.ok()) return norm.status();
    *slot.norm = *std::move(norm);
  }
  const BiasSlot biases[] = {{"q.bias", config.q_rows(), &params.q_bias},
                             {"k.bias", config.kv_rows(), &params.k_bias},
                             {"v.bias", config.kv_rows(), &params.v_bias},
                             {"o.bias", config.hidden, &params.o_bias},
                             {"gate.bias", config.intermediate, &params.gate_bias},
                             {"up.bias", config.intermediate, &params.up_bias},
                             {"down.bias", config.hidden, &params.down_bias}};
  for (const BiasSlot& slot : biases) {
    absl::StatusOr<std::vector<float>> bias =
        ReadOptional(source, BlockTensor(block, slot.name), slot.size);
    if (!bias.ok()) return bias.status();
    *slot.bias = *std::move(bias);
  }
  return params;
}

absl::StatusOr<ModelParams> LoadModelParams(const ModelConfig& config, const TensorSource& source) {
  ModelParams params;
  absl::StatusOr<NormParams> norm = ReadNorm(config, source, "final_norm", config.hidden);
  if (!norm.ok()) return norm.status();
  params.final_norm = *std::move(norm);
  if (config.position == PositionKind::kLearned) {
    const int64_t rows = config.max_positions + config.position_offset;
    absl::StatusOr<std::vector<float>> positions =
        ReadOptional(source, "embed_positions.weight", rows * config.hidden);
    if (!positions.ok()) return positions.status();
    if (positions->empty()) return WrongTensor("embed_positions.weight", "is missing");
    params.positions = *std::move(positions);
  }
  absl::StatusOr<std::vector<float>> bias = ReadOptional(source, "head.bias", config.vocab);
  if (!bias.ok()) return bias.status();
  params.head_bias = *std::move(bias);
  return params;
}

}  // namespace babai
