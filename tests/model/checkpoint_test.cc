#include "server/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/formats/float16.h"
#include "server/reason/reason.h"
#include "tests/model/checkpoint_builder.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::HasSubstr;
using testing::Not;

std::unique_ptr<Checkpoint> Open(const fs::path& path) {
  auto checkpoint = OpenCheckpoint(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

// Every canonical tensor, in order, with these values.
void ExpectHolds(const Checkpoint& checkpoint, const std::vector<NewTensor>& weights) {
  ASSERT_EQ(checkpoint.tensors().size(), weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const TensorInfo& info = checkpoint.tensors()[i];
    EXPECT_EQ(info.name, weights[i].name);
    EXPECT_EQ(info.shape, weights[i].shape) << info.name;
    const auto values = checkpoint.Read(info.name);
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_EQ(*values, weights[i].values) << info.name;
  }
}

class Families : public testing::TestWithParam<const char*> {
 protected:
  TempDir dir_;
};

TEST_P(Families, HuggingFaceFolderHoldsItsWeights) {
  const TinyModel model{.family = GetParam()};
  WriteTinyHfModel(model, dir_.path());
  const auto checkpoint = Open(dir_.path());
  ASSERT_NE(checkpoint, nullptr);
  ExpectHolds(*checkpoint, TinyWeights(model));
  EXPECT_EQ(checkpoint->config().family, model.family);
  EXPECT_EQ(checkpoint->config().eos, (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(checkpoint->ignored_tensors(), 0);
  EXPECT_FALSE(checkpoint->tokenizer().chat_template.empty());
}

TEST_P(Families, NamesNeedNoPrefix) {
  const TinyModel model{.family = GetParam(), .prefix = ""};
  WriteTinyHfModel(model, dir_.path());
  ExpectHolds(*Open(dir_.path()), TinyWeights(model));
}

TEST_P(Families, ShardsAreOneModel) {
  const TinyModel model{.family = GetParam(), .shards = 3};
  WriteTinyHfModel(model, dir_.path());
  ExpectHolds(*Open(dir_.path()), TinyWeights(model));
}

INSTANTIATE_TEST_SUITE_P(All, Families,
                         testing::Values("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2",
                                         "opt"));

class GgufFamilies : public testing::TestWithParam<TinyModel> {};

// The converters permute, fuse and shift; what comes out must be what went in.
TEST_P(GgufFamilies, GgufHoldsTheSameModel) {
  const TinyModel& model = GetParam();
  const TempDir dir;
  WriteTinyHfModel(model, dir.path() / "hf");
  WriteTinyGguf(model, dir.path() / "model.gguf");
  const auto hf = Open(dir.path() / "hf"), gguf = Open(dir.path() / "model.gguf");
  std::vector<NewTensor> weights = TinyWeights(model);
  for (NewTensor& tensor : weights) {  // Gemma's norms come with their 1 added
    const bool shifted = model.family == "gemma3" && tensor.name.find("norm") != std::string::npos;
    for (float& value : tensor.values) value += shifted ? 1.0f : 0.0f;
  }
  ExpectHolds(*gguf, weights);

  // The configurations differ only in what the sources call themselves and where the 1 is.
  Json a = Json::parse(ModelConfigToJson(hf->config()));
  Json b = Json::parse(ModelConfigToJson(gguf->config()));
  EXPECT_EQ(b["norm_weight_offset"], 0.0);
  for (const char* key : {"architecture", "norm_weight_offset", "eos"}) a.erase(key), b.erase(key);
  EXPECT_EQ(a, b);
  EXPECT_EQ(gguf->config().eos, (std::vector<int32_t>{0, 2}));  // 2 ends a turn in the template
}

INSTANTIATE_TEST_SUITE_P(
    All, GgufFamilies,
    testing::Values(TinyModel{.family = "llama"}, TinyModel{.family = "llama", .tied = true},
                    TinyModel{.family = "llama", .attention_bias = true},
                    TinyModel{.family = "qwen2"}, TinyModel{.family = "qwen3"},
                    TinyModel{.family = "gemma3"}, TinyModel{.family = "gpt2"}),
    [](const auto& info) {
      const TinyModel& m = info.param;
      return m.family + (m.tied ? "_tied" : "") + (m.attention_bias ? "_biased" : "");
    });

class CheckpointTest : public testing::Test {
 protected:
  // A Llama folder, good unless a test changes it.
  void SetUp() override { WriteTinyHfModel(model_, path()); }
  const fs::path& path() const { return dir_.path(); }

  void Rewrite(const std::vector<NewTensor>& tensors) {
    WriteFile(path() / "model.safetensors", SafetensorsBytes(tensors));
  }
  // The folder's tensors under their Hugging Face names.
  std::vector<NewTensor> Stored() const {
    std::vector<NewTensor> tensors = TinyWeights(model_);
    for (NewTensor& tensor : tensors) tensor.name = HfName(tensor.name);
    return tensors;
  }
  static std::string HfName(std::string name) {
    const std::pair<const char*, const char*> words[] = {
        {"blocks.", "model.layers."},
        {".q.", ".self_attn.q_proj."},
        {".k.", ".self_attn.k_proj."},
        {".v.", ".self_attn.v_proj."},
        {".o.", ".self_attn.o_proj."},
        {".gate.", ".mlp.gate_proj."},
        {".up.", ".mlp.up_proj."},
        {".down.", ".mlp.down_proj."},
        {".attn_norm.", ".input_layernorm."},
        {".mlp_norm.", ".post_attention_layernorm."},
        {"embed.", "model.embed_tokens."},
        {"final_norm.", "model.norm."},
        {"head.", "lm_head."}};
    for (const auto& [from, to] : words) {
      const size_t at = name.find(from);
      if (at != std::string::npos) name.replace(at, std::string(from).size(), to);
    }
    return name;
  }
  void SetConfig(const char* key, const Json& value) {
    std::ifstream in(path() / "config.json");
    Json json = Json::parse(in);
    json[key] = value;
    WriteFile(path() / "config.json", json.dump());
  }
  void ExpectRefused(std::string_view why, const std::string& field, const std::string& message,
                     const fs::path& root = {}) {
    const auto checkpoint = OpenCheckpoint(path(), root);
    ASSERT_FALSE(checkpoint.ok());
    const std::string text(checkpoint.status().message());
    EXPECT_EQ(ReasonOf(checkpoint.status()), why) << text;
    EXPECT_THAT(FieldOf(checkpoint.status()), HasSubstr(field));
    EXPECT_THAT(text, HasSubstr(message));
    EXPECT_THAT(text, Not(HasSubstr(path().string())));  // no server path in any message
  }

  TempDir dir_;
  TinyModel model_;
};

TEST_F(CheckpointTest, ReadsHalfPrecisionExactly) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    model_.dtype = dtype;
    WriteTinyHfModel(model_, path());
    const auto checkpoint = Open(path());
    const NewTensor q = TinyWeights(model_)[2];
    EXPECT_EQ(checkpoint->Find(q.name)->source_dtype, dtype);
    const std::vector<float> values = *checkpoint->Read(q.name);
    for (size_t i = 0; i < values.size(); ++i) {
      const float rounded = dtype == DType::kF16 ? HalfToFloat(FloatToHalf(q.values[i]))
                                                 : Bf16ToFloat(FloatToBf16(q.values[i]));
      ASSERT_EQ(values[i], rounded) << i;
    }
  }
}

TEST_F(CheckpointTest, ExtraTensorsAreCountedAndIgnored) {
  std::vector<NewTensor> tensors = Stored();
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {8}, std::vector<float>(8)});
  Rewrite(tensors);
  const auto checkpoint = Open(path());
  EXPECT_EQ(checkpoint->ignored_tensors(), 1);
  EXPECT_EQ(checkpoint->Find("blocks.0.inv_freq"), nullptr);
  EXPECT_EQ(checkpoint->Read("blocks.0.inv_freq").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, TiedModelsNeedNoHead) {
  std::vector<NewTensor> tensors = Stored();
  tensors.pop_back();
  Rewrite(tensors);
  ExpectRefused(reason::kInvalidModelFile, "model.safetensors: tensor 'lm_head.weight'", "missing");
  SetConfig("tie_word_embeddings", true);
  EXPECT_EQ(Open(path())->Find("head.weight"), nullptr);
}

TEST_F(CheckpointTest, MissingTensorIsNamed) {
  std::vector<NewTensor> tensors = Stored();
  tensors.erase(tensors.begin() + 5);  // blocks.0.o
  Rewrite(tensors);
  ExpectRefused(reason::kInvalidModelFile,
                "model.safetensors: tensor 'model.layers.0.self_attn.o_proj.weight'", "missing");
}

TEST_F(CheckpointTest, WrongShapeIsNamedWithBothShapes) {
  SetConfig("intermediate_size", 96);
  ExpectRefused(reason::kInvalidModelFile, "gate_proj.weight",
                "has shape [128, 64], expected [96, 64]");
}

TEST_F(CheckpointTest, MoreLayersThanTensors) {
  SetConfig("num_hidden_layers", 3);
  ExpectRefused(reason::kInvalidModelFile, "model.layers.2.input_layernorm.weight", "missing");
}

TEST_F(CheckpointTest, BiasThatTheConfigPromises) {
  SetConfig("attention_bias", true);
  ExpectRefused(reason::kInvalidModelFile, "q_proj.bias", "missing");
}

TEST_F(CheckpointTest, NonFiniteWeightsAreNamed) {
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    std::vector<NewTensor> tensors = Stored();
    tensors[3].values.back() = bad;  // blocks.0.k
    Rewrite(tensors);
    const auto checkpoint = Open(path());
    EXPECT_TRUE(checkpoint->Read("blocks.0.q.weight").ok());
    const auto values = checkpoint->Read("blocks.0.k.weight");
    ASSERT_FALSE(values.ok());
    EXPECT_EQ(ReasonOf(values.status()), reason::kNonFiniteWeights);
    EXPECT_THAT(FieldOf(values.status()), HasSubstr("self_attn.k_proj.weight"));
  }
}

TEST_F(CheckpointTest, UnreadableTypesAreNamed) {
  std::string bytes = SafetensorsBytes(Stored());
  const std::string f32 = "\"F32\"", i32 = "\"I32\"";
  for (size_t at = bytes.find(f32); at != std::string::npos; at = bytes.find(f32, at)) {
    bytes.replace(at, f32.size(), i32);
  }
  WriteFile(path() / "model.safetensors", bytes);
  ExpectRefused(reason::kUnsupportedFormat, "embed_tokens.weight", "type I32 is not read");
}

TEST_F(CheckpointTest, FileThatShrinksWhileOpenIsAnError) {
  const auto checkpoint = Open(path());
  fs::resize_file(path() / "model.safetensors", 4096);
  const auto values = checkpoint->Read("head.weight");
  ASSERT_FALSE(values.ok());
  EXPECT_EQ(ReasonOf(values.status()), reason::kInvalidModelFile);
  EXPECT_FALSE(checkpoint->Digest().ok());
}

TEST_F(CheckpointTest, NothingThere) {
  const auto absent = OpenCheckpoint(path() / "absent");
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(absent.status()), reason::kSourceNotFound);
  fs::remove(path() / "model.safetensors");
  ExpectRefused(reason::kInvalidModelFile, "model.safetensors", "missing");
  WriteFile(path() / "pytorch_model.bin", "pickle");
  ExpectRefused(reason::kUnsupportedFormat, "pytorch_model.bin", "convert to safetensors");
  fs::remove(path() / "config.json");
  ExpectRefused(reason::kSourceNotFound, "config.json", "no such file");
  EXPECT_EQ(ReasonOf(OpenCheckpoint(path() / "pytorch_model.bin").status()),
            reason::kUnsupportedFormat);
}

TEST_F(CheckpointTest, BrokenJsonIsNamed) {
  WriteFile(path() / "config.json", "{\"a\": 1, \"a\": 2}");
  ExpectRefused(reason::kInvalidModelFile, "config.json", "twice");
  WriteFile(path() / "config.json", std::string(5 << 20, ' '));
  ExpectRefused(reason::kInvalidModelFile, "config.json", "limit");
  WriteFile(path() / "config.json", "");
  ExpectRefused(reason::kInvalidModelFile, "config.json", "valid JSON");
}

TEST_F(CheckpointTest, OnlyRegularFiles) {
  fs::remove(path() / "config.json");
  ASSERT_EQ(mkfifo((path() / "config.json").c_str(), 0600), 0);
  ExpectRefused(reason::kInvalidModelFile, "config.json", "regular file");
}

TEST_F(CheckpointTest, LinksOutOfTheRoot) {
  const TempDir outside;
  fs::rename(path() / "config.json", outside.path() / "config.json");
  fs::create_symlink(outside.path() / "config.json", path() / "config.json");
  ExpectRefused(reason::kSourceNotAllowed, "config.json", "leads out", path());
  EXPECT_TRUE(OpenCheckpoint(path(), outside.path().parent_path()).ok());
}

TEST_F(CheckpointTest, ShardNamesMustBePlain) {
  model_.shards = 2;
  WriteTinyHfModel(model_, path());
  fs::remove(path() / "model.safetensors");
  const fs::path index = path() / "model.safetensors.index.json";
  ASSERT_TRUE(OpenCheckpoint(path()).ok());
  for (const char* name : {"../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "",
                           ".safetensors", "a\\x.safetensors", "x.bin"}) {
    WriteFile(index, Json{{"weight_map", {{"t", name}}}}.dump());
    ExpectRefused(reason::kInvalidModelFile, "index.json: tensor 't'", "plain name");
  }
  WriteFile(index, Json{{"weight_map", {{"t", "model-1-of-2.safetensors"}}}}.dump());
  ExpectRefused(reason::kInvalidModelFile, "tensor 't'", "is not in");
  WriteFile(index, Json{{"weight_map", {{"t", "absent.safetensors"}}}}.dump());
  ExpectRefused(reason::kSourceNotFound, "absent.safetensors", "no such file");
  WriteFile(index, "{}");
  ExpectRefused(reason::kInvalidModelFile, "index.json", "weight_map");
}

TEST_F(CheckpointTest, OneNameInTwoShards) {
  model_.shards = 2;
  WriteTinyHfModel(model_, path());
  fs::remove(path() / "model.safetensors");
  WriteFile(path() / "model-2-of-2.safetensors", SafetensorsBytes(Stored()));
  ExpectRefused(reason::kInvalidModelFile, "", "");
}

TEST_F(CheckpointTest, DigestSeesEveryByteOfEveryFile) {
  const std::string digest = *Open(path())->Digest();
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(*Open(path())->Digest(), digest);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    std::fstream file(path() / name, std::ios::in | std::ios::out | std::ios::ate);
    const auto size = file.tellg();
    file.seekg(size - std::streamoff(4));
    const char old = static_cast<char>(file.get());
    const auto set = [&](char c) {
      file.seekp(size - std::streamoff(4)), file.put(c), file.flush();
    };
    const auto opened = Open(path());  // before the change: the digest reads the files
    set(static_cast<char>(old ^ 1));
    EXPECT_NE(*opened->Digest(), digest) << name;
    set(old);
    EXPECT_EQ(*opened->Digest(), digest) << name;
  }
}

TEST_F(CheckpointTest, FolderOfOneGguf) {
  const TempDir folder;
  WriteTinyGguf(model_, folder.path() / "tiny.gguf");
  EXPECT_EQ(Open(folder.path())->config().architecture, "llama");
}

// Single tensors of a GGUF, made wrong one at a time.
TEST(GgufCheckpoint, RefusesByName) {
  const TempDir dir;
  const auto open = [&](const GgufBuilder& gguf) {
    WriteFile(dir.path() / "m.gguf", gguf.Bytes());
    return OpenCheckpoint(dir.path() / "m.gguf").status();
  };
  GgufBuilder empty;
  EXPECT_THAT(std::string(open(empty).message()), HasSubstr("general.architecture is missing"));
  GgufBuilder mamba;
  mamba.String("general.architecture", "mamba");
  EXPECT_EQ(ReasonOf(open(mamba)), reason::kUnsupportedArchitecture);

  GgufBuilder gguf;
  gguf.String("general.architecture", "llama");
  const std::pair<const char*, int> sizes[] = {
      {"vocab_size", 32},          {"context_length", 64}, {"embedding_length", 256},
      {"feed_forward_length", 64}, {"block_count", 1},     {"attention.head_count", 4}};
  for (const auto& [key, value] : sizes) gguf.Uint32(std::string("llama.") + key, value);
  gguf.Float32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  EXPECT_THAT(std::string(open(gguf).message()), HasSubstr("token_embd.weight': is missing"));
  GgufBuilder split = gguf;
  split.Raw("split.count", 2, std::string("\3\0", 2));
  EXPECT_EQ(ReasonOf(open(split)), reason::kUnsupportedFormat);
  GgufBuilder experts = gguf;
  experts.Uint32("llama.expert_count", 8);
  EXPECT_EQ(ReasonOf(open(experts)), reason::kUnsupportedArchitecture);
  gguf.Tensor("token_embd.weight", {32, 256}, 23, std::string(32 * 136, '\0'));
  EXPECT_EQ(ReasonOf(open(gguf)), reason::kUnsupportedFormat);
  EXPECT_THAT(std::string(open(gguf).message()), HasSubstr("IQ4_XS"));
}

// Llama 3's RoPE rule is a tensor of divisors.
TEST(GgufCheckpoint, RopeFreqsDivide) {
  const TempDir dir;
  GgufBuilder gguf;
  gguf.String("general.architecture", "llama");
  const std::pair<const char*, int> sizes[] = {
      {"vocab_size", 4},          {"context_length", 64}, {"embedding_length", 8},
      {"feed_forward_length", 8}, {"block_count", 1},     {"attention.head_count", 2}};
  for (const auto& [key, value] : sizes) gguf.Uint32(std::string("llama.") + key, value);
  gguf.Float32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  for (const char* name :
       {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
    gguf.TensorF32({"blk.0." + std::string(name) + ".weight", {8, 8}, std::vector<float>(64, 1)});
  }
  gguf.TensorF32({"token_embd.weight", {4, 8}, std::vector<float>(32, 1)});
  for (const char* name :
       {"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"}) {
    gguf.TensorF32({name, {8}, std::vector<float>(8, 1)});
  }
  GgufBuilder wrong = gguf, nan = gguf;
  gguf.TensorF32({"rope_freqs.weight", {2}, {1, 8}});
  WriteFile(dir.path() / "m.gguf", gguf.Bytes());
  const auto checkpoint = Open(dir.path() / "m.gguf");
  EXPECT_FLOAT_EQ(checkpoint->config().ropes[0].inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(checkpoint->config().ropes[0].inv_freq[1], 0.01f / 8);
  wrong.TensorF32({"rope_freqs.weight", {3}, {1, 8, 8}});
  WriteFile(dir.path() / "m.gguf", wrong.Bytes());
  EXPECT_EQ(ReasonOf(OpenCheckpoint(dir.path() / "m.gguf").status()), reason::kInvalidModelFile);
  nan.TensorF32({"rope_freqs.weight", {2}, {1, std::nanf("")}});
  WriteFile(dir.path() / "m.gguf", nan.Bytes());
  EXPECT_EQ(ReasonOf(OpenCheckpoint(dir.path() / "m.gguf").status()), reason::kInvalidModelFile);
}

}  // namespace
}  // namespace babai
