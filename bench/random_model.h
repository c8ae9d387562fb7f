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
constexpr int kRandomScaleExponent = -10;
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

// Of a model's linears but its head, which is plain integers.
struct RandomFormat {
  int bits = 4, group = 128;
  bool tables = false;  // 4-bit codes and a table a row
  int sparse = 0;       // sparse values, of 1000 weights
  int rotate = 1;       // blocks of rotated inputs
};

class RandomModel {
 public:
  RandomModel(const ModelConfig& config, const RandomFormat& format)
      : config_(config), format_(format), weights_(std::make_unique<CudaWeights>()) {}

  std::unique_ptr<CudaWeights> Make() {
    weights_->blocks.resize(config_.layers);
    loader_ = Must(CudaLoader::Make());
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
    Must(loader_->Finish());
    return std::move(weights_);
  }
  const ModelConfig& config() const { return config_; }
  int64_t linear_bytes() const { return linear_bytes_; }
  int64_t block_weights() const { return block_weights_; }

 private:
  CudaLinear RandomLinear(int64_t rows, int64_t cols,
                          CudaLinear::Order order = CudaLinear::Order::kStacked) {
    const bool head = rows == config_.vocab;
    const int n = static_cast<int>(rows), k = static_cast<int>(cols);
    CudaLinear::Part part;
    part.rows = rows, part.packed = true;
    if (!head && format_.tables) {
      part.shape = cuda::TableShape(n, k, format_.group);
      part.tables = Must(cuda::Buffer::OnDevice(TableBytes(rows)));
      FillWith(RandomHalves(), part.tables);
    } else {
      part.shape = {n, k, format_.bits, format_.group, false, kRandomScaleExponent};
    }
    part.weights = Must(cuda::Buffer::OnDevice(part.shape.bytes()));
    FillWith(RandomTiles(part.shape), part.weights);
    if (!head) {
      Surround(part, cols);
      block_weights_ += rows * cols;
    }
    if (part.tables.bytes() + part.around.bytes() > 0) order = CudaLinear::Order::kStacked;
    std::vector<CudaLinear::Part> parts;
    parts.push_back(std::move(part));
    CudaLinear linear(std::move(parts), cols, order);
    linear_bytes_ += linear.bytes(), weights_->bytes += linear.bytes();
    weights_->needs.Include(linear.needs());
    return linear;
  }
  void Surround(CudaLinear::Part& part, int64_t cols) {
    cpu::SparseWeights sparse(cols);
    std::mt19937 rng(3);
    const int64_t each = cols * format_.sparse / 1000;
    for (int64_t r = 0; r < part.rows && each > 0; ++r) {
      // In order, and far apart as sparse values are.
      for (int64_t i = 0; i < each; ++i) {
        sparse.Add((i * cols + static_cast<int64_t>(rng() % cols)) / each, 0.01f);
      }
      sparse.EndRow();
    }
    CudaSurroundings::Parts parts;
    parts.in.block = format_.rotate, parts.cols = cols;
    parts.sparse = {&sparse}, parts.rows = {part.rows};
    part.around = Must(CudaSurroundings::Load(parts, *loader_));
  }
  // fp16, 2^-7 to 2^-3.
  static std::vector<uint8_t> RandomHalves() {
    std::mt19937 rng(2);
    std::vector<uint8_t> pattern(1 << 24);
    for (size_t i = 0; i < pattern.size(); i += 2) {
      const uint16_t value = 0x2000 | (rng() & 0x8fff);
      std::memcpy(&pattern[i], &value, 2);
    }
    return pattern;
  }
  void MakeEmbedding() {
    weights_->embedding_of.push_back(
        Must(cuda::Buffer::OnDevice(config_.vocab * config_.hidden * 2)));
    FillWith(RandomHalves(), weights_->embedding_of.back());
    weights_->embedding.kind = cuda::EmbeddingTable::Kind::kFp16;
    weights_->embedding.values = weights_->embedding_of.back().data();
  }

  const ModelConfig config_;
  const RandomFormat format_;
  std::unique_ptr<CudaWeights> weights_;
  std::unique_ptr<CudaLoader> loader_;
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
