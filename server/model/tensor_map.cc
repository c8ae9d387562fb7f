#include "server/model/tensor_map.h"

#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "server/model/refusal.h"

namespace babai {
namespace {

using Shape = std::vector<int64_t>;

std::string ForLayer(std::string_view pattern, int64_t layer) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return std::string(pattern);
  return std::string(pattern.substr(0, star)) + std::to_string(layer) +
         std::string(pattern.substr(star + 1));
}

// Of the weight; a bias has its first dimension.
Shape CanonicalShape(const ModelConfig& c, std::string_view canonical) {
  const std::string_view part = canonical.substr(canonical.rfind('.') + 1);
  if (part == "embed" || part == "head") return {c.vocab, c.hidden};
  if (part == "embed_positions") return {c.max_positions + c.position_offset, c.hidden};
  if (part == "q") return {c.q_rows(), c.hidden};
  if (part == "k" || part == "v") return {c.kv_rows(), c.hidden};
  if (part == "o") return {c.hidden, c.q_rows()};
  if (part == "gate" || part == "up") return {c.intermediate, c.hidden};
  if (part == "down") return {c.hidden, c.intermediate};
  if (part == "q_norm" || part == "k_norm") return {c.head_dim};
  return {c.hidden};  // the other norms
}

class Mapper {
 public:
  Mapper(const SourceConfig& source, absl::Span<const std::string> file_names,
         const std::string& main_file)
      : source_(source), config_(source.model), file_names_(file_names), main_file_(main_file) {}

  absl::Status Index(const std::vector<StoredTensor>& tensors) {
    for (const StoredTensor& tensor : tensors) {
      if (!stored_.emplace(tensor.name, &tensor).second) {
        return BadTensor(file_names_[tensor.file], tensor.name, "is there twice");
      }
    }
    ChoosePrefix();
    return absl::OkStatus();
  }

  absl::Status BindAll() {
    const absl::Span<const TensorRow> rows = source_.family->tensors;
    const auto in_block = [](const TensorRow& row) {
      return row.canonical.find('*') != std::string_view::npos;
    };
    size_t first = 0, end = 0;
    while (first < rows.size() && !in_block(rows[first])) ++first;
    for (end = first; end < rows.size() && in_block(rows[end]);) ++end;
    absl::Status status = BindRows(rows.subspan(0, first), 0);
    for (int64_t layer = 0; status.ok() && layer < config_.layers; ++layer) {
      status = BindRows(rows.subspan(first, end - first), layer);
    }
    return status.ok() ? BindRows(rows.subspan(end), 0) : status;
  }

  TensorMap Take() {
    map_.ignored = static_cast<int64_t>(stored_.size() - used_.size());
    return std::move(map_);
  }

 private:
  // Checkpoints of one family differ in what stands before the tensors' names.
  void ChoosePrefix() {
    const TensorRow& embed = source_.family->tensors[0];
    for (const std::string_view prefix : source_.family->hf_prefixes) {
      const std::string name = std::string(prefix) + std::string(embed.hf) + ".weight";
      if (stored_.count(name) == 0) continue;
      prefix_ = prefix;
      return;
    }
    prefix_ = source_.family->hf_prefixes[0];
  }

  std::string SourceName(const TensorRow& row, int64_t layer, std::string_view suffix) const {
    if (source_.gguf) return ForLayer(row.gguf, layer) + std::string(suffix);
    const std::string name = ForLayer(row.hf, layer) + std::string(suffix);
    if (row.canonical != "head") return prefix_ + name;
    const std::string nested = "language_model." + name;
    return stored_.count(nested) != 0 ? nested : name;
  }

  bool Needed(Need need, const std::string& name) const {
    switch (need) {
      case Need::kNever:
        return false;
      case Need::kAlways:
        return true;
      case Need::kUntied:
        return !config_.tied_embedding;
      // A GGUF has no flags for biases: what is there is used.
      case Need::kAttentionBias:
        return source_.gguf ? stored_.count(name) != 0 : source_.attention_bias;
      case Need::kMlpBias:
        return source_.gguf ? stored_.count(name) != 0 : source_.mlp_bias;
    }
    return false;
  }

  absl::Status BindRows(absl::Span<const TensorRow> rows, int64_t layer) {
    for (const TensorRow& row : rows) {
      for (const bool bias : {false, true}) {
        const std::string_view suffix = bias ? ".bias" : ".weight";
        const std::string name = SourceName(row, layer, suffix);
        if (!Needed(bias ? row.bias : row.weight, name)) continue;
        Shape shape = CanonicalShape(config_, row.canonical);
        if (bias) shape.resize(1);
        TensorInfo info{.name = ForLayer(row.canonical, layer) + std::string(suffix),
                        .shape = shape};
        if (absl::Status status = Bind(row, name, std::move(info)); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Bind(const TensorRow& row, const std::string& name, TensorInfo info) {
    const auto found = stored_.find(name);
    if (found == stored_.end()) return BadTensor(main_file_, name, "is missing");
    const StoredTensor& stored = *found->second;
    const std::string& file = file_names_[stored.file];
    TensorBinding binding{.info = std::move(info)};
    binding.transposed = row.hf_transposed && !source_.gguf && binding.info.shape.size() == 2;
    const Shape expected = StoredShape(row, binding);
    if (stored.shape != expected) {
      return BadTensor(
          file, name, "has shape " + ShapeText(stored.shape) + ", expected " + ShapeText(expected));
    }
    if (stored.type->decode == nullptr) {
      return UnsupportedTensor(file, name,
                               "type " + std::string(stored.type->name) +
                                   " is not read; convert the weights to BF16, F16 or F32");
    }
    if (expected.size() == 1 && stored.type->block_elements != 1) {
      return UnsupportedTensor(file, name, "a vector stored in quantized blocks");
    }
    if (row.fused_part > 0) binding.first_row = config_.q_rows();
    if (row.fused_part > 1) binding.first_row += config_.kv_rows();
    const bool interleaved = row.rope_rows && source_.gguf && source_.family->gguf_interleaved_rope;
    if (interleaved) binding.interleaved_head = config_.head_dim;
    binding.info.source_dtype = stored.type->dtype;
    binding.info.source_type = stored.type->name;
    binding.stored = stored;
    used_.insert(name);
    map_.bindings.push_back(std::move(binding));
    return absl::OkStatus();
  }

  Shape StoredShape(const TensorRow& row, const TensorBinding& binding) const {
    Shape shape = binding.info.shape;
    if (row.fused_part >= 0) shape[0] = config_.q_rows() + 2 * config_.kv_rows();
    if (binding.transposed) std::swap(shape[0], shape[1]);
    return shape;
  }

  const SourceConfig& source_;
  const ModelConfig& config_;
  const absl::Span<const std::string> file_names_;
  const std::string& main_file_;
  std::unordered_map<std::string, const StoredTensor*> stored_;
  std::unordered_set<std::string> used_;
  std::string prefix_;
  TensorMap map_;
};

}  // namespace

absl::StatusOr<TensorMap> MapTensors(const SourceConfig& source,
                                     const std::vector<StoredTensor>& tensors,
                                     absl::Span<const std::string> file_names,
                                     const std::string& main_file) {
  Mapper mapper(source, file_names, main_file);
  if (absl::Status status = mapper.Index(tensors); !status.ok()) return status;
  if (absl::Status status = mapper.BindAll(); !status.ok()) return status;
  return mapper.Take();
}

}  // namespace babai
