// The weights of tiny models: random values, and their names and order in either kind of file.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "tests/model/checkpoint_builder.h"
#include "tests/model/tiny_model.h"

namespace babai {
namespace {

using Names = std::map<std::string, std::pair<std::string, std::string>>;  // stem -> HF, GGUF

// Uniform values of a given size, from the tensor's name and the model's seed alone.
NewTensor Random(const TinyModel& m, const std::string& name, std::vector<int64_t> shape,
                 double middle, double size) {
  uint64_t seed = m.seed * 0x9e3779b97f4a7c15u;
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  std::mt19937_64 bits(seed);
  int64_t count = 1;
  for (const int64_t n : shape) count *= n;
  NewTensor tensor{name, std::move(shape), {}};
  for (int64_t i = 0; i < count; ++i) {
    const double unit = static_cast<double>(bits() >> 11) * 0x1p-53;
    tensor.values.push_back(static_cast<float>(middle + size * (2 * unit - 1)));
  }
  return tensor;
}

class WeightMaker {
 public:
  explicit WeightMaker(const TinyModel& m) : m_(m) {}

  std::vector<NewTensor> Make() {
    const int64_t q = m_.heads * HeadDim(m_), kv = KvHeads(m_) * HeadDim(m_);
    const bool biased = HasLayerNorm(m_);
    const bool qkv_bias = biased || m_.family == "qwen2" || m_.attention_bias;
    Embedding("embed", m_.vocab);
    if (biased) Embedding("embed_positions", m_.max_positions + (m_.family == "opt" ? 2 : 0));
    for (int64_t n = 0; n < m_.layers; ++n) {
      const std::string block = "blocks." + std::to_string(n) + ".";
      Norm(block + "attn_norm", m_.hidden);
      Linear(block + "q", q, m_.hidden, qkv_bias);
      Linear(block + "k", kv, m_.hidden, qkv_bias);
      Linear(block + "v", kv, m_.hidden, qkv_bias);
      if (IsOneOf(m_.family, {"qwen3", "gemma3"})) {
        Norm(block + "q_norm", HeadDim(m_));
        Norm(block + "k_norm", HeadDim(m_));
      }
      Linear(block + "o", m_.hidden, q, biased || m_.attention_bias);
      if (m_.family == "gemma3") Norm(block + "post_attn_norm", m_.hidden);
      Norm(block + "mlp_norm", m_.hidden);
      if (!biased) Linear(block + "gate", m_.intermediate, m_.hidden, false);
      Linear(block + "up", m_.intermediate, m_.hidden, biased);
      Linear(block + "down", m_.hidden, m_.intermediate, biased);
      if (m_.family == "gemma3") Norm(block + "post_mlp_norm", m_.hidden);
    }
    Norm("final_norm", m_.hidden);
    if (!IsTied(m_)) Linear("head", m_.vocab, m_.hidden, false);
    return std::move(tensors_);
  }

 private:
  void Embedding(const std::string& stem, int64_t rows) {
    // A tied embedding is the head too: with values near 1, logits would be near sqrt(hidden).
    const double size = IsTied(m_) ? std::sqrt(3.0 / static_cast<double>(m_.hidden)) : 1;
    tensors_.push_back(Random(m_, stem + ".weight", {rows, m_.hidden}, 0, size));
  }
  void Norm(const std::string& stem, int64_t size) {
    const double middle = m_.family == "gemma3" ? 0 : 1;
    tensors_.push_back(Random(m_, stem + ".weight", {size}, middle, 0.25));
    if (HasLayerNorm(m_)) tensors_.push_back(Random(m_, stem + ".bias", {size}, 0, 0.25));
  }
  void Linear(const std::string& stem, int64_t out, int64_t in, bool bias) {
    const double size = std::sqrt(3.0 / static_cast<double>(in));
    tensors_.push_back(Random(m_, stem + ".weight", {out, in}, 0, size));
    if (bias) tensors_.push_back(Random(m_, stem + ".bias", {out}, 0, 0.25));
  }

  const TinyModel& m_;
  std::vector<NewTensor> tensors_;
};

const Names& NamesOf(const std::string& family) {
  static const Names llama = {
      {"embed", {"model.embed_tokens", "token_embd"}},
      {"attn_norm", {"model.layers.#.input_layernorm", "blk.#.attn_norm"}},
      {"q", {"model.layers.#.self_attn.q_proj", "blk.#.attn_q"}},
      {"k", {"model.layers.#.self_attn.k_proj", "blk.#.attn_k"}},
      {"v", {"model.layers.#.self_attn.v_proj", "blk.#.attn_v"}},
      {"q_norm", {"model.layers.#.self_attn.q_norm", "blk.#.attn_q_norm"}},
      {"k_norm", {"model.layers.#.self_attn.k_norm", "blk.#.attn_k_norm"}},
      {"o", {"model.layers.#.self_attn.o_proj", "blk.#.attn_output"}},
      {"mlp_norm", {"model.layers.#.post_attention_layernorm", "blk.#.ffn_norm"}},
      {"gate", {"model.layers.#.mlp.gate_proj", "blk.#.ffn_gate"}},
      {"up", {"model.layers.#.mlp.up_proj", "blk.#.ffn_up"}},
      {"down", {"model.layers.#.mlp.down_proj", "blk.#.ffn_down"}},
      {"final_norm", {"model.norm", "output_norm"}},
      {"head", {"lm_head", "output"}},
  };
  static const Names gemma3 = [] {
    Names names = llama;
    names["post_attn_norm"] = {"model.layers.#.post_attention_layernorm",
                               "blk.#.post_attention_norm"};
    names["mlp_norm"] = {"model.layers.#.pre_feedforward_layernorm", "blk.#.ffn_norm"};
    names["post_mlp_norm"] = {"model.layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm"};
    return names;
  }();
  static const Names gpt2 = {
      {"embed", {"transformer.wte", "token_embd"}},
      {"embed_positions", {"transformer.wpe", "position_embd"}},
      {"attn_norm", {"transformer.h.#.ln_1", "blk.#.attn_norm"}},
      {"q", {"transformer.h.#.attn.c_attn", "blk.#.attn_qkv"}},  // q, k and v in one
      {"o", {"transformer.h.#.attn.c_proj", "blk.#.attn_output"}},
      {"mlp_norm", {"transformer.h.#.ln_2", "blk.#.ffn_norm"}},
      {"up", {"transformer.h.#.mlp.c_fc", "blk.#.ffn_up"}},
      {"down", {"transformer.h.#.mlp.c_proj", "blk.#.ffn_down"}},
      {"final_norm", {"transformer.ln_f", "output_norm"}},
  };
  static const Names opt = {
      {"embed", {"model.decoder.embed_tokens", ""}},
      {"embed_positions", {"model.decoder.embed_positions", ""}},
      {"attn_norm", {"model.decoder.layers.#.self_attn_layer_norm", ""}},
      {"q", {"model.decoder.layers.#.self_attn.q_proj", ""}},
      {"k", {"model.decoder.layers.#.self_attn.k_proj", ""}},
      {"v", {"model.decoder.layers.#.self_attn.v_proj", ""}},
      {"o", {"model.decoder.layers.#.self_attn.out_proj", ""}},
      {"mlp_norm", {"model.decoder.layers.#.final_layer_norm", ""}},
      {"up", {"model.decoder.layers.#.fc1", ""}},
      {"down", {"model.decoder.layers.#.fc2", ""}},
      {"final_norm", {"model.decoder.final_layer_norm", ""}},
  };
  if (family == "gemma3") return gemma3;
  if (family == "gpt2") return gpt2;
  if (family == "opt") return opt;
  return llama;
}

struct Split {  // "blocks.3.q.weight" -> "3", "q", ".weight"
  std::string layer, stem, suffix;
};
Split SplitName(const std::string& canonical) {
  const size_t dot = canonical.rfind('.');
  Split split{"", canonical.substr(0, dot), canonical.substr(dot)};
  if (split.stem.rfind("blocks.", 0) == 0) {
    const size_t end = split.stem.find('.', 7);
    split.layer = split.stem.substr(7, end - 7);
    split.stem = split.stem.substr(end + 1);
  }
  return split;
}

std::string SourceName(const TinyModel& m, const Split& split, bool gguf) {
  const auto& pair = NamesOf(m.family).at(split.stem);
  std::string name = gguf ? pair.second : pair.first;
  if (const size_t mark = name.find('#'); mark != std::string::npos) {
    name.replace(mark, 1, split.layer);
  }
  const size_t first_dot = name.find('.');
  if (!gguf && m.prefix != "*" && split.stem != "head") {
    name = m.prefix + name.substr(first_dot + 1);
  }
  return name + split.suffix;
}

// GPT-2's fused projection: the rows of `more` below those of `tensor`.
void AppendRows(const NewTensor& more, NewTensor& tensor) {
  tensor.shape[0] += more.shape[0];
  tensor.values.insert(tensor.values.end(), more.values.begin(), more.values.end());
}

void Transpose(NewTensor& tensor) {
  const int64_t rows = tensor.shape[0], cols = tensor.shape[1];
  std::vector<float> values(tensor.values.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) values[c * rows + r] = tensor.values[r * cols + c];
  }
  tensor.values = std::move(values);
  tensor.shape = {cols, rows};
}

// llama.cpp's order for arch llama: pairs (i, i + half) become neighbours.
void Interleave(int64_t head, NewTensor& tensor) {
  const int64_t cols = static_cast<int64_t>(tensor.values.size()) / tensor.shape[0];
  const std::vector<float> from = tensor.values;
  for (int64_t start = 0; start < tensor.shape[0]; start += head) {
    for (int64_t i = 0; i < head; ++i) {
      const int64_t source = start + i / 2 + i % 2 * (head / 2);
      std::copy_n(from.begin() + source * cols, cols, tensor.values.begin() + (start + i) * cols);
    }
  }
}

}  // namespace

std::vector<NewTensor> TinyWeights(const TinyModel& model) { return WeightMaker(model).Make(); }

std::vector<NewTensor> SourceTensors(const TinyModel& m, bool gguf) {
  std::vector<NewTensor> tensors;
  std::map<std::string, size_t> fused;  // GPT-2's c_attn by layer and suffix
  for (NewTensor& tensor : TinyWeights(m)) {
    const Split split = SplitName(tensor.name);
    const bool is_qkv = IsOneOf(split.stem, {"q", "k", "v"});
    if (m.family == "gpt2" && IsOneOf(split.stem, {"k", "v"})) {
      AppendRows(tensor, tensors[fused.at(split.layer + split.suffix)]);
      continue;
    }
    if (m.family == "gpt2" && is_qkv) fused[split.layer + split.suffix] = tensors.size();
    const bool is_norm = split.stem.find("norm") != std::string::npos;
    if (gguf && m.family == "gemma3" && is_norm) {
      for (float& value : tensor.values) value += 1;
    }
    if (gguf && m.family == "llama" && IsOneOf(split.stem, {"q", "k"})) {
      Interleave(HeadDim(m), tensor);
    }
    tensor.name = SourceName(m, split, gguf);
    tensors.push_back(std::move(tensor));
  }
  if (m.family == "gpt2" && !gguf) {
    for (NewTensor& tensor : tensors) {
      if (tensor.name.find(".c_") != std::string::npos && tensor.shape.size() == 2)
        Transpose(tensor);
    }
  }
  return tensors;
}

}  // namespace babai
