// Small random checkpoints for tests, written from fixed seeds: the same weights as a Hugging Face
// folder and as a GGUF file, with a tokenizer that works. Names and layouts are written down here a
// second time, independently of server/model, so that the two can disagree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "server/model/checkpoint.h"

namespace babai {

// A tensor to write: row-major fp32 values, shape slowest dimension first.
struct NewTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

void WriteFile(const std::filesystem::path& path, std::string_view bytes);

// u64 length, header, data: whatever the header says.
std::string SafetensorsFile(std::string_view header, std::string_view data);

// A valid file of `tensors`, values rounded to `dtype` (kF32, kF16 or kBF16).
std::string SafetensorsBytes(const std::vector<NewTensor>& tensors, DType dtype = DType::kF32);

// Puts a GGUF file together piece by piece. Nothing is checked: hostile files are made with it too.
class GgufBuilder {
 public:
  void Uint32(std::string_view key, uint32_t value);
  void Float32(std::string_view key, float value);
  void Bool(std::string_view key, bool value);
  void String(std::string_view key, std::string_view value);
  void Strings(std::string_view key, const std::vector<std::string>& values);
  void Int32s(std::string_view key, const std::vector<int32_t>& values);
  void Raw(std::string_view key, uint32_t value_type, std::string_view bytes);

  // `type`: ggml's number. `bytes`: as they lie in the file.
  void Tensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
              std::string_view bytes);
  void TensorF32(const NewTensor& tensor);

  struct Lies {  // numbers to write in place of the true ones; -1: the truth
    int64_t version = -1, tensors = -1, pairs = -1, offset_shift = 0;
  };
  std::string Bytes(const Lies& lies) const;
  std::string Bytes() const { return Bytes(Lies()); }

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    uint32_t type;
    std::string bytes;
  };
  std::string metadata_;
  uint64_t pairs_ = 0;
  std::vector<Entry> tensors_;
};

// What a tiny model looks like. Equal values give equal bytes on every machine.
struct TinyModel {
  std::string family = "llama";  // llama mistral qwen2 qwen3 gemma3 gpt2 opt
  uint64_t seed = 1;
  int64_t hidden = 64, intermediate = 128, layers = 2, heads = 4;
  int64_t kv_heads = 2;  // gpt2 and opt: as many as heads
  int64_t head_dim = 0;  // 0: 32 for mistral, qwen3 and gemma3, else hidden / heads
  int64_t vocab = 320;   // at least 288: 3 special tokens, 256 bytes, merges
  int64_t max_positions = 256;
  bool tied = false;            // gpt2, opt and gemma3 always are
  bool attention_bias = false;  // llama, qwen3 and gemma3
  DType dtype = DType::kF32;    // of the safetensors file
  int shards = 1;               // safetensors files
  std::string prefix = "*";     // before tensor names; "*": what the family writes
};

// config.json, generation_config.json, model*.safetensors, tokenizer.json, tokenizer_config.json.
// `dir` is created. Loads in transformers too.
void WriteTinyHfModel(const TinyModel& model, const std::filesystem::path& dir);

// The same weights (fp32), for llama, qwen2, qwen3, gemma3 and gpt2.
void WriteTinyGguf(const TinyModel& model, const std::filesystem::path& file);

// The canonical tensors that either of them holds (norm weights as Hugging Face stores them).
std::vector<NewTensor> TinyWeights(const TinyModel& model);

// The tokenizer of every tiny model: byte-level BPE. Ids: 0 <|endoftext|>, 1 <|im_start|>,
// 2 <|im_end|>, 3 + b for byte b, then a few merges.
std::string TinyTokenizerJson();

}  // namespace babai
