// The largest model this server will look at. Wide enough for any dense decoder published so far;
// small enough that no product of two of them overflows, and that a lying header can not make us
// allocate what its file does not hold.
#pragma once

#include <cstdint>

namespace babai {

inline constexpr int64_t kMaxLayers = 512;
inline constexpr int64_t kMaxHidden = 65536;
inline constexpr int64_t kMaxIntermediate = 1 << 20;
inline constexpr int64_t kMaxVocab = 1 << 20;
inline constexpr int64_t kMaxHeads = 1024;
inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kMaxPositions = 1 << 24;

inline constexpr int64_t kMaxTensors = 100'000;  // in one file
inline constexpr int64_t kMaxTensorName = 512;   // bytes
inline constexpr int64_t kMaxRank = 8;
inline constexpr int64_t kMaxShards = 1024;
inline constexpr int64_t kMaxHeaderBytes = 16 << 20;     // safetensors header, shard index
inline constexpr int64_t kMaxConfigBytes = 4 << 20;      // config.json and its small siblings
inline constexpr int64_t kMaxTokenizerBytes = 64 << 20;  // tokenizer.json

}  // namespace babai
