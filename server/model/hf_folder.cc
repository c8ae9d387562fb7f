// A Hugging Face folder: config.json, safetensors in one file or in shards, the tokenizer's files.
#include <set>
#include <utility>

#include "server/model/file_checkpoint.h"
#include "server/model/limits.h"
#include "server/model/refusal.h"
#include "server/model/safetensors.h"
#include "server/model/source_config.h"
#include "server/model/strict_json.h"
#include "server/model/tokenizer_source.h"

namespace babai {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr char kSingle[] = "model.safetensors", kIndex[] = "model.safetensors.index.json";

class Folder {
 public:
  Folder(const fs::path& path, const fs::path& root) : path_(path), root_(root) {}

  bool Has(const char* name) const {
    std::error_code error;
    return fs::exists(path_ / name, error);
  }

  absl::StatusOr<InputFile> Open(std::string_view name) const {
    return InputFile::Open(path_, name, root_);
  }

  // The text of a small file, which joins `files`; "" when it is not there and need not be.
  absl::StatusOr<std::string> Text(const char* name, uint64_t limit, bool required,
                                   std::vector<InputFile>& files) const {
    if (!required && !Has(name)) return std::string();
    absl::StatusOr<InputFile> file = Open(name);
    if (!file.ok()) return file.status();
    absl::StatusOr<std::string> text = file->ReadAll(limit);
    if (text.ok()) files.push_back(*std::move(file));
    return text;
  }

 private:
  const fs::path& path_;
  const fs::path& root_;
};

// Shards lie in the folder itself: a name with a path in it is an attempt to leave.
bool IsShardName(const std::string& name) {
  constexpr std::string_view kSuffix = ".safetensors";
  return name.size() > kSuffix.size() && name.size() <= 255 && name[0] != '.' &&
         std::string_view(name).substr(name.size() - kSuffix.size()) == kSuffix &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

using WeightMap = std::map<std::string, std::string>;  // tensor -> shard

absl::StatusOr<WeightMap> ReadWeightMap(const std::string& text) {
  const absl::StatusOr<Json> json = ParseJsonObject(text, kIndex, {.depth = 8});
  if (!json.ok()) return json.status();
  const auto found = json->find("weight_map");
  if (found == json->end() || !found->is_object() || found->empty()) {
    return BadFile(kIndex, "weight_map must be an object that names tensors");
  }
  WeightMap map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string() || !IsShardName(shard.get_ref<const std::string&>())) {
      return BadTensor(kIndex, tensor, "its shard must be the plain name of a .safetensors file");
    }
    map.emplace(tensor, shard.get<std::string>());
  }
  return map;
}

struct Weights {
  std::vector<InputFile> files;
  std::vector<StoredTensor> tensors;
  std::string main_file = kSingle;
};

absl::Status AddShard(const Folder& folder, const std::string& name, Weights& out) {
  absl::StatusOr<InputFile> file = folder.Open(name);
  if (!file.ok()) return file.status();
  absl::StatusOr<std::vector<StoredTensor>> tensors =
      ReadSafetensorsHeader(*file, static_cast<int>(out.files.size()));
  if (!tensors.ok()) return tensors.status();
  std::move(tensors->begin(), tensors->end(), std::back_inserter(out.tensors));
  out.files.push_back(*std::move(file));
  return absl::OkStatus();
}

// What the index says about a tensor must hold; tensors it does not mention are extras.
absl::Status CheckWeightMap(WeightMap map, const Weights& weights) {
  for (const StoredTensor& tensor : weights.tensors) {
    const auto found = map.find(tensor.name);
    if (found != map.end() && found->second == weights.files[tensor.file].name()) map.erase(found);
  }
  if (map.empty()) return absl::OkStatus();
  return BadTensor(kIndex, map.begin()->first, "is not in " + Quoted(map.begin()->second));
}

absl::StatusOr<Weights> OpenWeights(const Folder& folder, std::vector<InputFile>& small_files) {
  Weights weights;
  if (folder.Has(kSingle)) {
    if (absl::Status status = AddShard(folder, kSingle, weights); !status.ok()) return status;
    return weights;
  }
  if (!folder.Has(kIndex)) {
    if (!folder.Has("pytorch_model.bin") && !folder.Has("pytorch_model.bin.index.json")) {
      return BadFile(kSingle, "is missing, and so is model.safetensors.index.json");
    }
    return UnsupportedFile(
        "pytorch_model.bin",
        "pickled weights can run code and are never loaded; convert to safetensors");
  }
  weights.main_file = kIndex;
  const absl::StatusOr<std::string> text = folder.Text(kIndex, kMaxHeaderBytes, true, small_files);
  if (!text.ok()) return text.status();
  const absl::StatusOr<WeightMap> map = ReadWeightMap(*text);
  if (!map.ok()) return map.status();
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *map) shards.insert(shard);
  if (static_cast<int64_t>(shards.size()) > kMaxShards) {
    return BadFile(kIndex, "names more than " + std::to_string(kMaxShards) + " shards");
  }
  for (const std::string& shard : shards) {
    if (absl::Status status = AddShard(folder, shard, weights); !status.ok()) return status;
  }
  if (absl::Status status = CheckWeightMap(*map, weights); !status.ok()) return status;
  return weights;
}

absl::StatusOr<SourceConfig> OpenConfig(const Folder& folder, std::vector<InputFile>& files) {
  const absl::StatusOr<std::string> text = folder.Text("config.json", kMaxConfigBytes, true, files);
  if (!text.ok()) return text.status();
  const absl::StatusOr<Json> config = ParseJsonObject(*text, "config.json");
  if (!config.ok()) return config.status();
  const absl::StatusOr<std::string> generation =
      folder.Text("generation_config.json", kMaxConfigBytes, false, files);
  if (!generation.ok()) return generation.status();
  if (generation->empty()) return ReadHfConfig(*config, Json());
  const absl::StatusOr<Json> parsed = ParseJsonObject(*generation, "generation_config.json");
  if (!parsed.ok()) return parsed.status();
  return ReadHfConfig(*config, *parsed);
}

absl::StatusOr<TokenizerSource> OpenTokenizer(const Folder& folder, std::vector<InputFile>& files) {
  HfTokenizerFiles texts;
  const struct {
    const char* name;
    int64_t limit;
    std::string* text;
  } rows[] = {
      {"tokenizer.json", kMaxTokenizerBytes, &texts.tokenizer},
      {"tokenizer_config.json", kMaxConfigBytes, &texts.tokenizer_config},
      {"special_tokens_map.json", kMaxConfigBytes, &texts.special_tokens_map},
      {"chat_template.jinja", kMaxConfigBytes, &texts.chat_template},
  };
  for (const auto& row : rows) {
    absl::StatusOr<std::string> text = folder.Text(row.name, row.limit, false, files);
    if (!text.ok()) return text.status();
    *row.text = *std::move(text);
  }
  return ReadHfTokenizer(std::move(texts));
}

// What the tokenizer's files know better than config.json.
void AdoptTokens(const TokenizerSource& tokenizer, ModelConfig& config) {
  config.add_bos = tokenizer.add_bos;
  if (config.bos < 0 && tokenizer.bos < config.vocab) config.bos = tokenizer.bos;
  const int32_t eos = tokenizer.eos;  // of a chat model: what ends a turn
  for (const int32_t known : config.eos) {
    if (known == eos) return;
  }
  if (eos >= 0 && eos < config.vocab) config.eos.push_back(eos);
}

}  // namespace

absl::StatusOr<CheckpointParts> OpenHfFolder(const fs::path& path, const fs::path& root) {
  const Folder folder(path, root);
  std::vector<InputFile> small_files;
  absl::StatusOr<SourceConfig> source = OpenConfig(folder, small_files);
  if (!source.ok()) return source.status();
  absl::StatusOr<TokenizerSource> tokenizer = OpenTokenizer(folder, small_files);
  if (!tokenizer.ok()) return tokenizer.status();
  AdoptTokens(*tokenizer, source->model);
  absl::StatusOr<Weights> weights = OpenWeights(folder, small_files);
  if (!weights.ok()) return weights.status();

  std::vector<std::string> names;
  for (const InputFile& file : weights->files) names.push_back(file.name());
  absl::StatusOr<TensorMap> map = MapTensors(*source, weights->tensors, names, weights->main_file);
  if (!map.ok()) return map.status();
  std::move(small_files.begin(), small_files.end(), std::back_inserter(weights->files));
  return CheckpointParts{.config = std::move(source->model),
                         .tokenizer = *std::move(tokenizer),
                         .map = *std::move(map),
                         .files = std::move(weights->files)};
}

}  // namespace babai
