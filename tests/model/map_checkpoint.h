// A checkpoint in memory, for tests that make or change weights.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/checkpoint.h"

namespace babai {

class MapCheckpoint final : public Checkpoint {
 public:
  explicit MapCheckpoint(ModelConfig config) : config_(std::move(config)) {}
  void Add(TensorInfo info, std::vector<float> values) {
    values_[info.name] = std::move(values);
    tensors_.push_back(std::move(info));
  }
  std::vector<float>& values(const std::string& name) { return values_.at(name); }
  const ModelConfig& config() const override { return config_; }
  const TokenizerSource& tokenizer() const override { return tokenizer_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  absl::StatusOr<std::vector<float>> Read(std::string_view name) const override {
    return values_.at(std::string(name));
  }
  absl::StatusOr<std::string> Digest() const override { return std::string(); }

 private:
  ModelConfig config_;
  TokenizerSource tokenizer_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

}  // namespace babai
