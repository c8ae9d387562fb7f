#include "server/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

#include "server/reason/reason.h"
#include "tests/model/checkpoint_builder.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

using testing::HasSubstr;

absl::StatusOr<GgufHeader> Read(std::string_view bytes) {
  const TempDir dir;
  WriteFile(dir.path() / "x.gguf", bytes);
  absl::StatusOr<InputFile> file = InputFile::Open(dir.path(), "x.gguf");
  if (!file.ok()) return file.status();
  return ReadGgufHeader(*file, 0);
}

std::string U64(uint64_t value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::string U32(uint32_t value) { return U64(value).substr(0, 4); }

// A file of one tensor "t".
std::string OneTensor(const std::vector<int64_t>& shape, uint32_t type, size_t bytes,
                      const GgufBuilder::Lies& lies = {}) {
  GgufBuilder gguf;
  gguf.String("general.architecture", "llama");
  gguf.Tensor("t", shape, type, std::string(bytes, '\0'));
  return gguf.Bytes(lies);
}

std::string OneValue(uint32_t type, std::string_view bytes) {
  GgufBuilder gguf;
  gguf.Raw("key", type, bytes);
  return gguf.Bytes();
}

TEST(Gguf, DescribesWhatWasWritten) {
  GgufBuilder gguf;
  gguf.Uint32("a.u32", 7);
  gguf.Raw("a.u64", 10, U64(8));
  gguf.Raw("a.i8", 1, "\xff");
  gguf.Float32("a.f32", 0.5f);
  gguf.Bool("a.bool", true);
  gguf.String("a.string", "text");
  gguf.Strings("a.strings", {"x", "", "z"});
  gguf.Int32s("a.ints", {-1, 2});
  gguf.Tensor("w", {3, 64}, 3, std::string(3 * 40, '\1'));
  gguf.Tensor("n", {5}, 0, std::string(20, '\2'));
  const auto header = Read(gguf.Bytes());
  ASSERT_TRUE(header.ok()) << header.status();
  GgufFields in(*header, "x.gguf");
  EXPECT_EQ(in.Int("a.u32", 0, 10), 7);
  EXPECT_EQ(in.Int("a.u64", 0, 10), 8);
  EXPECT_EQ(in.Int("a.i8", -5, 10), -1);
  EXPECT_EQ(in.Number("a.f32", 0, 1), 0.5);
  EXPECT_TRUE(in.Bool("a.bool", false));
  EXPECT_EQ(in.String("a.string"), "text");
  EXPECT_EQ(*in.List<std::string>("a.strings"), (std::vector<std::string>{"x", "", "z"}));
  EXPECT_EQ(*in.List<int64_t>("a.ints"), (std::vector<int64_t>{-1, 2}));
  EXPECT_TRUE(in.status().ok());
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].shape, (std::vector<int64_t>{3, 64}));
  EXPECT_EQ(header->tensors[0].type->name, "Q4_1");
  EXPECT_EQ(header->tensors[0].bytes, 120u);
  EXPECT_EQ(header->tensors[1].offset, header->tensors[0].offset + 128);  // aligned to 32
}

TEST(Gguf, FieldsRefuseOtherTypesAndRanges) {
  GgufBuilder gguf;
  gguf.Uint32("n", 7);
  gguf.String("s", "text");
  const auto header = Read(gguf.Bytes());
  const auto fails = [&](auto read) {
    GgufFields in(*header, "x.gguf");
    read(in);
    return ReasonOf(in.status()) == reason::kInvalidModelFile;
  };
  EXPECT_TRUE(fails([](GgufFields& in) { in.Int("n", 8, 9); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.Int("s", 0, 9); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.Int("absent", 0, 9); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.Number("n", 0, 9); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.String("n"); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.Bool("n", true); }));
  EXPECT_TRUE(fails([](GgufFields& in) { in.List<std::string>("s"); }));
}

struct Bad {
  const char* name;
  std::string bytes;
  const char* message;
  std::string_view why = reason::kInvalidModelFile;
};

std::string Twice(bool tensor) {
  GgufBuilder gguf;
  gguf.Uint32("k", 1);
  if (!tensor) gguf.Uint32("k", 1);
  gguf.Tensor("t", {8}, 0, std::string(32, '\0'));
  if (tensor) gguf.Tensor("t", {8}, 0, std::string(32, '\0'));
  return gguf.Bytes();
}

std::string Aligned(uint32_t alignment) {
  GgufBuilder gguf;
  gguf.Uint32("general.alignment", alignment);
  return gguf.Bytes();
}

std::string Overlapping() {
  // The second tensor's offset is 32; a first one of 64 bytes reaches over it.
  GgufBuilder gguf;
  gguf.Tensor("a", {8}, 0, std::string(32, '\0'));
  gguf.Tensor("b", {8}, 0, std::string(96, '\0'));
  std::string bytes = gguf.Bytes();
  const size_t dim = bytes.find('a', 24) + 1 + 4;
  bytes.replace(dim, 8, U64(16));
  return bytes;
}

std::vector<Bad> BadFiles() {
  const std::string good = OneTensor({4, 8}, 0, 128);
  return {
      {"empty", "", "ends in the middle"},
      {"three bytes", "GGU", "ends in the middle"},
      {"other magic", "GGML" + good.substr(4), "does not start with GGUF"},
      {"cut header", good.substr(0, 40), "header"},
      {"version 1", OneTensor({8}, 0, 32, {.version = 1}), "version 1", reason::kUnsupportedFormat},
      {"version 4", OneTensor({8}, 0, 32, {.version = 4}), "version 4", reason::kUnsupportedFormat},
      {"big-endian", OneTensor({8}, 0, 32, {.version = 0x03000000}), "big-endian",
       reason::kUnsupportedFormat},
      {"more tensors than bytes", OneTensor({8}, 0, 32, {.tensors = 1 << 30}), "tensors"},
      {"2^62 tensors", OneTensor({8}, 0, 32, {.tensors = int64_t{1} << 62}), "tensors"},
      {"one tensor too many", OneTensor({8}, 0, 32, {.tensors = 2}), ""},
      {"2^62 keys", OneTensor({8}, 0, 32, {.pairs = int64_t{1} << 62}), "keys"},
      {"one key too many", OneTensor({8}, 0, 32, {.pairs = 2}), ""},
      {"key twice", Twice(false), "twice"},
      {"tensor twice", Twice(true), "twice"},
      {"key of 2^63 bytes",
       "GGUF" + U32(3) + U64(0) + U64(1) + U64(uint64_t{1} << 63) + std::string(64, 'k'), "string"},
      {"string of 2^40 bytes", OneValue(8, U64(uint64_t{1} << 40) + "x"), "string"},
      {"array of 2^60 bytes", OneValue(9, U32(0) + U64(uint64_t{1} << 60) + "x"), "array"},
      {"array of 2^61 strings", OneValue(9, U32(8) + U64(uint64_t{1} << 61) + "x"), "array"},
      {"array of arrays", OneValue(9, U32(9) + U64(1) + U32(0) + U64(0)), "array of value type 9"},
      {"array of nothing known", OneValue(9, U32(77) + U64(1)), "array of value type 77"},
      {"unknown value type", OneValue(13, "xxxxxxxx"), "value type 13"},
      {"u64 above int64", OneValue(10, U64(~uint64_t{0})), "integer"},
      {"alignment 0", Aligned(0), "general.alignment"},
      {"alignment 24", Aligned(24), "power of two"},
      {"alignment 2^31", Aligned(1u << 31), "general.alignment"},
      {"type 4, removed", OneTensor({32}, 4, 32), "type 4", reason::kUnsupportedFormat},
      {"type 2^32-1", OneTensor({32}, ~0u, 32), "unknown", reason::kUnsupportedFormat},
      {"rank 0", OneTensor({}, 0, 32), "rank 0"},
      {"rank 5", OneTensor({1, 1, 1, 1, 8}, 0, 32), "rank 5"},
      {"row no multiple of a block", OneTensor({2, 48}, 2, 64), "blocks of 32"},
      {"shape overflows", OneTensor({int64_t{1} << 40, int64_t{1} << 40}, 0, 32), "overflows"},
      {"negative dimension", OneTensor({-8}, 0, 32), "integer"},
      {"tensor beyond the file", OneTensor({64}, 0, 32), "do not fit"},
      {"offset beyond the file", OneTensor({8}, 0, 32, {.offset_shift = 64}), "do not fit"},
      {"offset near 2^63",
       OneTensor({8}, 0, 32, {.offset_shift = std::numeric_limits<int64_t>::max() - 31}),
       "do not fit"},
      {"offset not aligned", OneTensor({4}, 0, 32, {.offset_shift = 8}), "alignment"},
      {"truncated data", good.substr(0, good.size() - 1), "do not fit"},
      {"overlap", Overlapping(), "overlap"},
  };
}

TEST(Gguf, RefusesWhatTheFormatForbids) {
  for (const Bad& bad : BadFiles()) {
    const auto header = Read(bad.bytes);
    ASSERT_FALSE(header.ok()) << bad.name;
    EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << bad.name;
    EXPECT_EQ(ReasonOf(header.status()), bad.why) << bad.name << ": " << header.status();
    EXPECT_THAT(FieldOf(header.status()), HasSubstr("x.gguf")) << bad.name;
    EXPECT_THAT(std::string(header.status().message()), HasSubstr(bad.message)) << bad.name;
  }
}

TEST(Gguf, SurvivesEveryChangedByte) {
  const std::string good = OneTensor({4, 32}, 8, 4 * 34);
  const TempDir dir;
  for (size_t i = 0; i < good.size() - 4 * 34; ++i) {
    for (const char change : {'\0', '\1', '\x7f', '\xff'}) {
      std::string bytes = good;
      bytes[i] = change;
      WriteFile(dir.path() / "x", bytes);
      const auto file = InputFile::Open(dir.path(), "x");
      const auto header = ReadGgufHeader(*file, 0);
      if (!header.ok()) continue;
      for (const StoredTensor& tensor : header->tensors) {
        EXPECT_LE(tensor.offset + tensor.bytes, bytes.size()) << i;
      }
    }
  }
}

// Real files made by llama.cpp, vocabulary only.
TEST(Gguf, ReadsRealVocabularies) {
  const char* data = std::getenv("BABAI_DATA");
  if (data == nullptr) GTEST_SKIP() << "BABAI_DATA is not set";
  const struct {
    const char* name;
    size_t tokens;
  } rows[] = {{"ggml-vocab-gpt-2.gguf", 50257}, {"ggml-vocab-llama-spm.gguf", 32000}};
  for (const auto& row : rows) {
    const auto file = InputFile::Open(std::filesystem::path(data) / "tokenizer", row.name);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto header = ReadGgufHeader(*file, 0);
    ASSERT_TRUE(header.ok()) << header.status();
    GgufFields in(*header, row.name);
    EXPECT_EQ(in.List<std::string>("tokenizer.ggml.tokens")->size(), row.tokens);
  }
}

}  // namespace
}  // namespace babai
