// The one Checkpoint there is: files, and a map from canonical tensors to their bytes.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/model/checkpoint.h"
#include "server/model/input_file.h"
#include "server/model/tensor_map.h"

namespace babai {

// What hf_folder.cc and gguf_model.cc find out. files[StoredTensor::file] holds a tensor; the files
// behind those of the weights are there for the digest.
struct CheckpointParts {
  ModelConfig config;
  TokenizerSource tokenizer;
  TensorMap map;
  std::vector<InputFile> files;
};

absl::StatusOr<CheckpointParts> OpenHfFolder(const std::filesystem::path& folder,
                                             const std::filesystem::path& root);
absl::StatusOr<CheckpointParts> OpenGgufModel(const std::filesystem::path& file,
                                              const std::filesystem::path& root);

class FileCheckpoint : public Checkpoint {
 public:
  explicit FileCheckpoint(CheckpointParts parts);

  const ModelConfig& config() const override { return parts_.config; }
  const TokenizerSource& tokenizer() const override { return parts_.tokenizer; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  absl::StatusOr<std::vector<float>> Read(std::string_view name) const override;
  absl::StatusOr<std::string> Digest() const override;
  int64_t ignored_tensors() const override { return parts_.map.ignored; }

 private:
  CheckpointParts parts_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;  // by canonical name
};

}  // namespace babai
