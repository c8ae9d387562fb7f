// What a stored tensor is made of: plain numbers or blocks of quantized ones, as safetensors and
// GGUF name them. Types without a decoder are known by size and name, so that a file that holds one
// can be checked and, when a weight needs it, refused by name.
#pragma once

#include <cstdint>
#include <string_view>

#include "server/model/checkpoint.h"

namespace babai {

// Decodes `blocks` whole blocks into blocks * block_elements values.
using BlockDecoder = void (*)(const uint8_t* stored, int64_t blocks, float* out);

struct ElementType {
  std::string_view name;
  int64_t block_elements = 1;
  int64_t block_bytes = 0;
  DType dtype = DType::kQuantized;
  BlockDecoder decode = nullptr;
};

// By a safetensors dtype ("BF16"); nullptr: no such type.
const ElementType* FindSafetensorsType(std::string_view name);

// By a ggml type number; nullptr: no such type.
const ElementType* FindGgmlType(uint32_t id);

}  // namespace babai
