#include "tests/model/tiny_model.h"

#include <stdexcept>

#include "tests/model/tiny_tokenizer.h"

namespace babai {
namespace {

void WriteWeights(const TinyModel& m, const std::filesystem::path& dir) {
  const std::vector<NewTensor> tensors = SourceTensors(m, /*gguf=*/false);
  if (m.shards == 1) {
    WriteFile(dir / "model.safetensors", SafetensorsBytes(tensors, m.dtype));
    return;
  }
  std::vector<std::vector<NewTensor>> shards(m.shards);
  Json map = Json::object();
  const auto name = [&](size_t shard) {
    return "model-" + std::to_string(shard + 1) + "-of-" + std::to_string(m.shards) +
           ".safetensors";
  };
  for (size_t i = 0; i < tensors.size(); ++i) {
    shards[i % shards.size()].push_back(tensors[i]);
    map[tensors[i].name] = name(i % shards.size());
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    WriteFile(dir / name(i), SafetensorsBytes(shards[i], m.dtype));
  }
  WriteFile(dir / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
}

void WriteVocabulary(const TinyModel& m, GgufBuilder& gguf) {
  constexpr int kNormal = 1, kControl = 3, kUnused = 5;
  std::vector<std::string> tokens = TinyTokens().tokens;
  std::vector<int32_t> types(tokens.size(), kNormal);
  for (int id = 0; id < kTinySpecials; ++id) types[id] = kControl;
  while (static_cast<int64_t>(tokens.size()) < m.vocab) {
    tokens.push_back("<|unused_" + std::to_string(tokens.size()) + "|>");
    types.push_back(kUnused);
  }
  gguf.String("tokenizer.ggml.model", "gpt2");
  gguf.String("tokenizer.ggml.pre", "gpt-2");
  gguf.Strings("tokenizer.ggml.tokens", tokens);
  gguf.Int32s("tokenizer.ggml.token_type", types);
  gguf.Strings("tokenizer.ggml.merges", TinyTokens().merges);
  gguf.Uint32("tokenizer.ggml.bos_token_id", 0);
  gguf.Uint32("tokenizer.ggml.eos_token_id", 0);
  gguf.Bool("tokenizer.ggml.add_bos_token", false);
  gguf.String("tokenizer.chat_template", kTinyChatTemplate);
}

}  // namespace

void WriteTinyHfModel(const TinyModel& m, const std::filesystem::path& dir) {
  std::filesystem::create_directories(dir);
  WriteFile(dir / "config.json", ConfigJson(m).dump(2));
  WriteFile(dir / "generation_config.json", R"({"bos_token_id": 0, "eos_token_id": [2, 0]})");
  WriteFile(dir / "tokenizer.json", TinyTokenizerJson());
  WriteFile(dir / "tokenizer_config.json", Json{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                                {"bos_token", "<|endoftext|>"},
                                                {"eos_token", "<|im_end|>"},
                                                {"add_bos_token", false},
                                                {"chat_template", std::string(kTinyChatTemplate)}}
                                               .dump(2));
  WriteWeights(m, dir);
}

void WriteTinyGguf(const TinyModel& m, const std::filesystem::path& file) {
  if (!IsOneOf(m.family, {"llama", "qwen2", "qwen3", "gemma3", "gpt2"})) {
    throw std::invalid_argument("no GGUF architecture for " + m.family);
  }
  GgufBuilder gguf;
  const auto key = [&](const char* name) { return m.family + "." + name; };
  gguf.String("general.architecture", m.family);
  gguf.Uint32(key("context_length"), m.max_positions);
  gguf.Uint32(key("embedding_length"), m.hidden);
  gguf.Uint32(key("feed_forward_length"), m.intermediate);
  gguf.Uint32(key("block_count"), m.layers);
  gguf.Uint32(key("attention.head_count"), m.heads);
  gguf.Uint32(key("attention.head_count_kv"), KvHeads(m));
  gguf.Float32(
      key(HasLayerNorm(m) ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"),
      1e-5f);
  if (!HasLayerNorm(m)) gguf.Float32(key("rope.freq_base"), 10000);
  if (HeadDim(m) != m.hidden / m.heads) {
    gguf.Uint32(key("attention.key_length"), HeadDim(m));
    gguf.Uint32(key("attention.value_length"), HeadDim(m));
  }
  if (m.family == "gemma3") {
    gguf.Float32(key("rope.freq_base_swa"), 1000);
    gguf.Uint32(key("attention.sliding_window"), 16);
    gguf.Uint32(key("attention.sliding_window_pattern"), 2);
  }
  WriteVocabulary(m, gguf);
  for (const NewTensor& tensor : SourceTensors(m, /*gguf=*/true)) gguf.TensorF32(tensor);
  std::filesystem::create_directories(file.parent_path());
  WriteFile(file, gguf.Bytes());
}

}  // namespace babai
