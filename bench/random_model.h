// Models of random weights on the device, and steps of them, for benches.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "must.h"
#include "server/engine/cuda_runner_impl.h"
#include "server/model/config.h"

namespace babai {

// Of "1,4,16".
inline std::vector<int> ParseList(const char* s) {
  std::vector<int> out;
  for (; s != nullptr; s = std::strchr(s, ',') ? std::strchr(s, ',') + 1 : nullptr) {
    if (*s != '\0') out.push_back(std::atoi(s));
  }
  return out;
}

// Copies `pattern` over the buffer again and again.
inline void FillWith(const std::vector<uint8_t>& pattern, const cuda::Buffer& buffer) {
  const int64_t size = pattern.size();
  for (int64_t at = 0; at < buffer.bytes(); at += size) {
    const int64_t count = std::min(size, buffer.bytes() - at);
    Must(cuda::FromCuda(
        cudaMemcpy(buffer.data<uint8_t>() + at, pattern.data(), count, cudaMemcpyHostToDevice),
        "random weights"));
  }
}

// Random tiles with scales of 2^-11 to 2^-10: weights of some 0.003.
inline std::vector<uint8_t> RandomTiles(const cuda::PackedShape& shape) {
  constexpr int kTiles = 4096;
  std::mt19937 rng(1);
  std::vector<uint8_t> tiles(int64_t{kTiles} * shape.tile_bytes());
  for (uint8_t& v : tiles) v = static_cast<uint8_t>(rng());
  for (int i = 0; i < kTiles; ++i) {
    uint8_t* scales = tiles.data() + int64_t{i} * shape.tile_bytes() + shape.code_bytes();
    for (int j = 0; j < shape.groups_per_tile() * cuda::kTileRows; ++j) {
      const uint16_t scale = 0x1000 | (rng() & 0x3ff);
      std::memcpy(scales + 2 * j, &scale, 2);
    }
  }
  return tiles;
}

class RandomModel {
 public:
  RandomModel(const ModelConfig& config, int bits, int group)
      : config_(config), bits_(bits), group_(group), weights_(std::make_unique<CudaWeights>()) {}

  std::unique_ptr<CudaWeights> Make() {
    weights_->blocks.resize(config_.layers);
    weights_->params = Must(cuda::Buffer::OnDevice(config_.hidden * sizeof(float)));
    const std::vector<float> ones(config_.hidden, 1.0f);
    Must(cuda::FromCuda(cudaMemcpy(weights_->params.data(), ones.data(), weights_->params.bytes(),
                                   cudaMemcpyHostToDevice),
                        "norms"));
    const cuda::NormWeights norm = {weights_->params.data<float>(), nullptr};
    const int64_t qkv_rows = config_.q_rows() + 2 * config_.kv_rows();
    for (CudaBlock& block : weights_->blocks) {
      block.attn_norm = block.mlp_norm = norm;
      block.qkv = RandomLinear(qkv_rows, config_.hidden);
      block.o = RandomLinear(config_.hidden, config_.q_rows());
      block.gate_up =
          RandomLinear(2 * config_.intermediate, config_.hidden, CudaLinear::Order::kInEights);
      block.down = RandomLinear(config_.hidden, config_.intermediate);
    }
    weights_->final_norm = norm;
    weights_->head = RandomLinear(config_.vocab, config_.hidden);
    MakeEmbedding();
    return std::move(weights_);
  }
  const ModelConfig& config() const { return config_; }
  int64_t linear_bytes() const { return linear_bytes_; }
  int64_t block_weights() const { return block_weights_; }

 private:
  CudaLinear RandomLinear(int64_t rows, int64_t cols,
                          CudaLinear::Order order = CudaLinear::Order::kStacked) {
    CudaLinear::Part part;
    part.rows = rows, part.packed = true;
    part.shape = {static_cast<int>(rows), static_cast<int>(cols), bits_, group_, false};
    part.weights = Must(cuda::Buffer::OnDevice(part.shape.bytes()));
    if (tiles_.empty()) tiles_ = RandomTiles(part.shape);
    FillWith(tiles_, part.weights);
    linear_bytes_ += part.weights.bytes();
    if (rows != config_.vocab) block_weights_ += rows * cols;
    weights_->bytes += part.weights.bytes();
    std::vector<CudaLinear::Part> parts;
    parts.push_back(std::move(part));
    return CudaLinear(std::move(parts), cols, order);
  }
  void MakeEmbedding() {
    std::mt19937 rng(2);
    std::vector<uint8_t> pattern(1 << 24);
    for (size_t i = 0; i < pattern.size(); i += 2) {
      const uint16_t value = 0x2000 | (rng() & 0x8fff);  // fp16, 2^-7 to 2^-3
      std::memcpy(&pattern[i], &value, 2);
    }
    weights_->embedding_of.push_back(
        Must(cuda::Buffer::OnDevice(config_.vocab * config_.hidden * 2)));
    FillWith(pattern, weights_->embedding_of.back());
    weights_->embedding.kind = cuda::EmbeddingTable::Kind::kFp16;
    weights_->embedding.values = weights_->embedding_of.back().data();
  }

  const ModelConfig config_;
  const int bits_, group_;
  std::unique_ptr<CudaWeights> weights_;
  std::vector<uint8_t> tiles_;
  int64_t linear_bytes_ = 0, block_weights_ = 0;
};

// One step: `count` tokens at `start` of each of `sequences` sequences, logits of the last ones.
class Steps {
 public:
  Steps(Runner& runner, bool want_logits)
      : runner_(runner), want_logits_(want_logits), logits_(runner.LogitsBuffer(64)) {}

  void Run(int sequences, int start, int count) {
    const int blocks = (start + count + 15) / 16;
    std::vector<int32_t> tokens, positions, begin = {0}, context, tables, rows;
    for (int s = 0; s < sequences; ++s) {
      for (int i = 0; i < count; ++i) {
        tokens.push_back(
            static_cast<int32_t>((s * 7919 + (start + i) * 104729) % runner_.config().vocab));
        positions.push_back(start + i);
      }
      begin.push_back(static_cast<int32_t>(tokens.size()));
      context.push_back(start + count);
      for (int b = 0; b < blocks; ++b) tables.push_back(b * sequences + s);
      rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    std::vector<TokenChoice> choices;
    if (!want_logits_) choices.assign(sequences, {true, 1.0f, 0.5});
    Must(runner_.Step(
        {tokens, positions, begin, context, tables, blocks, rows, absl::MakeSpan(choices)},
        logits_));
  }

 private:
  Runner& runner_;
  const bool want_logits_;
  float* const logits_;  // pinned, as the scheduler has them
};

}  // namespace babai
