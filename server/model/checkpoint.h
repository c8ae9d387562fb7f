// A source checkpoint, opened and checked: a Hugging Face directory (config.json, single or sharded
// safetensors) or one GGUF file. Every byte is hostile: extents and counts are checked against the
// file's size before anything is allocated, and every expected tensor's shape against the config.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/config.h"

namespace babai {

enum class DType { kF32, kF16, kBF16, kQuantized /* a GGUF block type */ };

struct TensorInfo {
  std::string name;            // canonical (server/model/config.h)
  std::vector<int64_t> shape;  // canonical: [out, in] or [n]
  DType source_dtype = DType::kF32;
  std::string source_type;  // as the file spells it: "BF16", "Q4_1", ...
};

// What the tokenizer is made of; server/text reads it. For a Hugging Face source, add_bos and
// add_eos say what its tokenizer does with a plain text, and bos, eos are the ids of bos_token,
// eos_token.
struct TokenizerSource {
  enum class Kind { kNone, kHuggingFaceJson, kGguf } kind = Kind::kNone;
  std::string tokenizer_json;        // Hugging Face: the file's text
  std::string chat_template;         // Jinja text; empty = none
  std::string bos_token, eos_token;  // texts handed to the template
  // GGUF vocabulary (tokenizer.ggml.*)
  std::string gguf_model, gguf_pre;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> token_types;
  std::vector<std::string> merges;
  bool add_bos = false, add_eos = false, add_space_prefix = true;
  int32_t bos = -1, eos = -1, unk = -1;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const TokenizerSource& tokenizer() const = 0;

  // Every canonical tensor of the model, in canonical order (embed, blocks.0..., final_norm, head).
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  const TensorInfo* Find(std::string_view name) const;

  // The tensor as fp32, row-major, rows in canonical order. Thread-safe.
  // InvalidArgument NON_FINITE_WEIGHTS: it holds a NaN or an infinity (the message names it).
  virtual absl::StatusOr<std::vector<float>> Read(std::string_view name) const = 0;

  // sha256 over the names, sizes and contents of the files used; lower hex. Reads everything.
  virtual absl::StatusOr<std::string> Digest() const = 0;

  // Tensors of the source that the model does not use (masks, rotary tables, a vision tower).
  virtual int64_t ignored_tensors() const { return 0; }
};

// `path` is a directory (config.json with safetensors, or one .gguf) or a .gguf file, which the
// caller has already confined to an allowed root. With `root`, every file opened is checked once
// more, on its descriptor: one that a symbolic link takes out of `root` is PermissionDenied,
// SOURCE_NOT_ALLOWED. InvalidArgument (INVALID_MODEL_FILE, UNSUPPORTED_ARCHITECTURE,
// UNSUPPORTED_FORMAT ...) names file, tensor and rule; NotFound: no model there. No message holds a
// path beyond the model's own folder.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::filesystem::path& path,
                                                           const std::filesystem::path& root = {});

}  // namespace babai
