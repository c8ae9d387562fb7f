// A model in one GGUF file.
#include <algorithm>
#include <utility>

#include "server/model/file_checkpoint.h"
#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/source_config.h"
#include "server/model/tensor_reader.h"
#include "server/model/tokenizer_source.h"

namespace babai {
namespace {

const StoredTensor* FindStored(const GgufHeader& header, std::string_view name) {
  for (const StoredTensor& tensor : header.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// RoPE rules that the converter wrote as tensors. Absent ones stay empty.
absl::StatusOr<GgufRopeTensors> ReadRopeTensors(const InputFile& file, const GgufHeader& header) {
  GgufRopeTensors rope;
  const struct {
    std::string_view name;
    std::vector<float>* values;
  } rows[] = {
      {"rope_freqs.weight", &rope.freqs},
      {"rope_factors_long.weight", &rope.long_factors},
      {"rope_factors_short.weight", &rope.short_factors},
  };
  for (const auto& row : rows) {
    const StoredTensor* stored = FindStored(header, row.name);
    if (stored == nullptr) continue;
    if (stored->shape.size() != 1 || stored->shape[0] > kMaxHeadDim) {
      return BadTensor(
          file.name(), row.name,
          "has shape " + ShapeText(stored->shape) + ", expected one number a pair of a head");
    }
    absl::StatusOr<std::vector<float>> values = ReadStored(file, *stored);
    if (!values.ok()) return values.status();
    *row.values = *std::move(values);
  }
  return rope;
}

}  // namespace

absl::StatusOr<CheckpointParts> OpenGgufModel(const std::filesystem::path& path,
                                              const std::filesystem::path& root) {
  absl::StatusOr<InputFile> file =
      InputFile::Open(path.parent_path(), path.filename().string(), root);
  if (!file.ok()) return file.status();
  const absl::StatusOr<GgufHeader> header = ReadGgufHeader(*file, 0);
  if (!header.ok()) return header.status();
  const absl::StatusOr<GgufRopeTensors> rope = ReadRopeTensors(*file, *header);
  if (!rope.ok()) return rope.status();
  absl::StatusOr<SourceConfig> source = ReadGgufConfig(*header, *rope, file->name());
  if (!source.ok()) return source.status();
  absl::StatusOr<TokenizerSource> tokenizer = ReadGgufTokenizer(*header, file->name());
  if (!tokenizer.ok()) return tokenizer.status();
  source->model.add_bos = tokenizer->add_bos;
  source->model.tied_embedding = FindStored(*header, "output.weight") == nullptr;

  const std::vector<std::string> names = {file->name()};
  absl::StatusOr<TensorMap> map = MapTensors(*source, header->tensors, names, file->name());
  if (!map.ok()) return map.status();
  CheckpointParts parts{.config = std::move(source->model),
                        .tokenizer = *std::move(tokenizer),
                        .map = *std::move(map)};
  parts.files.push_back(*std::move(file));
  return parts;
}

}  // namespace babai
