// What a calibration runs on where only its time counts.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "must.h"
#include "random_weights.h"
#include "server/engine/cuda_calibration.h"
#include "server/model/config.h"

namespace babai {

// Random tokens by a random table.
inline void EmbedRandomTokens(const ModelConfig& config, int samples, int length,
                              CudaCalibration& calibration, const cuda::Stream& stream) {
  const cuda::Buffer table = Must(cuda::Buffer::OnDevice(config.vocab * config.hidden * 4));
  Must(RandomNormals(table.data<float>(), config.vocab * config.hidden, 1.0f, 99, stream.get()));
  std::mt19937 rng(1);
  std::vector<std::vector<int32_t>> ids(samples, std::vector<int32_t>(length));
  for (auto& sequence : ids) {
    for (int32_t& id : sequence) id = static_cast<int32_t>(rng() % config.vocab);
  }
  cuda::EmbeddingTable embedding;
  embedding.kind = cuda::EmbeddingTable::Kind::kFp32, embedding.values = table.data();
  Must(calibration.Embed(embedding, nullptr, ids));
}

}  // namespace babai
