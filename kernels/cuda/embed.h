// x = embedding rows * scale + learned position rows: how a step begins.
//
//   regime    any number of tokens; one block a token
//   roof      a row read, a row written
//   numerics  fp32; a packed row is exactly kernels/formats/packed_int.h's
#pragma once

#include <cstdint>

#include "kernels/cuda/queue.h"

namespace babai::cuda {

// A matrix [vocab, hidden] whose rows are looked up: as floats, or in format F1 just as it is
// stored (formats/packed_int.h).
struct EmbeddingTable {
  enum class Kind { kFp16, kBf16, kFp32, kPacked };
  Kind kind = Kind::kFp16;
  const void* values = nullptr;  // or codes
  // kPacked:
  const uint16_t* scales = nullptr;
  const uint8_t* zeros = nullptr;  // null: symmetric
  int bits = 0, group = 0;
};

struct EmbedArgs {  // device pointers
  EmbeddingTable table;
  const int32_t* tokens;       // [count]
  const int32_t* positions;    // [count]
  const float* position_rows;  // [.., hidden], or null
  float scale;
  float* x;  // [count, hidden]; overwritten
  int count, hidden;
};

cudaError_t Embed(const EmbedArgs& args, const Queue& queue);

}  // namespace babai::cuda
