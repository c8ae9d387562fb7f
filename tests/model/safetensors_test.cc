#include "server/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "server/reason/reason.h"
#include "tests/model/checkpoint_builder.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

using testing::HasSubstr;

absl::StatusOr<std::vector<StoredTensor>> Read(std::string_view bytes) {
  const TempDir dir;
  WriteFile(dir.path() / "x.safetensors", bytes);
  absl::StatusOr<InputFile> file = InputFile::Open(dir.path(), "x.safetensors");
  if (!file.ok()) return file.status();
  return ReadSafetensorsHeader(*file, 3);
}

std::string WithLength(uint64_t length, std::string_view rest) {
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + std::string(rest);
}

std::string OneTensor(std::string_view fields, size_t data_bytes = 4) {
  return SafetensorsFile("{\"x\": {" + std::string(fields) + "}}", std::string(data_bytes, '\0'));
}

std::string Repeat(std::string_view text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(Safetensors, DescribesWhatWasWritten) {
  const auto tensors = Read(SafetensorsBytes({{"a", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"b", {1}, {7}}}));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const StoredTensor& a = (*tensors)[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.type->name, "F32");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a.bytes, 24u);
  EXPECT_EQ(a.file, 3);
  EXPECT_EQ((*tensors)[1].offset, a.offset + 24);
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  const std::pair<const char*, std::string> cases[] = {
      {"no tensors", SafetensorsFile("{}", "")},
      {"only metadata", SafetensorsFile(R"({"__metadata__": {"format": "pt"}})", "")},
      {"empty tensor", OneTensor(R"("dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0])", 0)},
      {"scalar", OneTensor(R"("dtype": "F32", "shape": [], "data_offsets": [0, 4])")},
      {"space padding", SafetensorsFile("{}       ", "")},
      {"a slash in the name",
       SafetensorsFile(R"({"a/b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})", "x")},
      {"packed 4-bit floats", OneTensor(R"("dtype": "F4", "shape": [8], "data_offsets": [0, 4])")},
  };
  for (const auto& [name, bytes] : cases) EXPECT_TRUE(Read(bytes).ok()) << name;
}

struct Bad {
  const char* name;
  std::string bytes;
  const char* message;
};

std::vector<Bad> BadFiles() {
  const std::string two = R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, )";
  return {
      {"empty file", "", "too small"},
      {"seven bytes", "1234567", "too small"},
      {"length 0", WithLength(0, ""), "does not start with {"},
      {"length beyond file", WithLength(100, "{}"), "in a file of"},
      {"length 2^63", WithLength(uint64_t{1} << 63, "{}"), "limit"},
      {"length 2^64-1", WithLength(~uint64_t{0}, "{}"), "limit"},
      {"length over the cap", WithLength((16 << 20) + 1, "{}"), "limit"},
      {"first byte not a brace", SafetensorsFile(" {}", ""), "does not start with {"},
      {"an array", SafetensorsFile("[1]", ""), "does not start with {"},
      {"bad UTF-8", SafetensorsFile("{\"\xff\": 1}", ""), "valid JSON"},
      {"garbage behind", SafetensorsFile("{} x", ""), "valid JSON"},
      {"cut JSON", SafetensorsFile("{\"x\": {", ""), "valid JSON"},
      {"duplicate tensor",
       SafetensorsFile(two + R"("x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                       "01234567"),
       "twice"},
      {"duplicate metadata", SafetensorsFile(R"({"__metadata__": {}, "__metadata__": {}})", ""),
       "twice"},
      {"duplicate field",
       OneTensor(R"("dtype": "F32", "shape": [1], "shape": [1], "data_offsets": [0, 4])"), "twice"},
      {"metadata no object", SafetensorsFile(R"({"__metadata__": 1})", ""), "__metadata__"},
      {"metadata number", SafetensorsFile(R"({"__metadata__": {"a": 1}})", ""), "__metadata__"},
      {"tensor no object", SafetensorsFile(R"({"x": 1})", ""), "object"},
      {"no dtype", OneTensor(R"("shape": [1], "data_offsets": [0, 4])"), "dtype"},
      {"unknown dtype", OneTensor(R"("dtype": "F33", "shape": [1], "data_offsets": [0, 4])"),
       "unknown dtype"},
      {"shape -1", OneTensor(R"("dtype": "F32", "shape": [-1], "data_offsets": [0, 4])"), "shape"},
      {"shape 1e400", OneTensor(R"("dtype": "F32", "shape": [1e400], "data_offsets": [0, 4])"),
       "valid JSON"},
      {"shape 1.0", OneTensor(R"("dtype": "F32", "shape": [1.0], "data_offsets": [0, 4])"),
       "shape"},
      {"shape 2^63",
       OneTensor(R"("dtype": "F32", "shape": [9223372036854775808], "data_offsets": [0, 4])"),
       "shape"},
      {"shape product overflows",
       OneTensor(R"("dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4])"),
       "overflows"},
      {"shape bytes overflow",
       OneTensor(R"("dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4])"),
       "overflows"},
      {"shape no list", OneTensor(R"("dtype": "F32", "shape": 1, "data_offsets": [0, 4])"),
       "shape"},
      {"begin after end", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [4, 0])"),
       "begin and an end"},
      {"three offsets", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4])"),
       "begin and an end"},
      {"negative offset", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [-4, 0])"),
       "data_offsets"},
      {"end beyond the data", OneTensor(R"("dtype": "F32", "shape": [2], "data_offsets": [0, 8])"),
       "data bytes"},
      {"truncated data", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 4])", 3),
       "data bytes"},
      {"size does not fit the shape",
       OneTensor(R"("dtype": "F32", "shape": [2], "data_offsets": [0, 4])"), "dtype and shape"},
      {"overlap",
       SafetensorsFile(two + R"("y": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}})",
                       "012345"),
       "overlap"},
      {"same bytes twice",
       SafetensorsFile(two + R"("y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
                       "0123"),
       "overlap"},
      {"hole",
       SafetensorsFile(two + R"("y": {"dtype": "F32", "shape": [1], "data_offsets": [6, 10]}})",
                       "0123456789"),
       "hole"},
      {"hole in front", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [4, 8])", 8),
       "hole"},
      {"tail", OneTensor(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 4])", 5),
       "belong to no tensor"},
      {"rank 9",
       OneTensor(R"("dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4])"),
       "rank"},
      {"rank 1000",
       OneTensor("\"dtype\": \"F32\", \"shape\": [1" + Repeat(",1", 999) +
                 "], \"data_offsets\": [0, 4]"),
       "rank"},
      {"depth 10000", SafetensorsFile("{\"x\": " + Repeat("[", 10000), ""), "nested too deeply"},
      {"too many tensors",
       [] {
         std::string header = "{";
         for (int i = 0; i <= 100'000; ++i) {
           header += (i ? ",\"" : "\"") + std::to_string(i) +
                     R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
         }
         return SafetensorsFile(header + "}", "");
       }(),
       "more than 100000 tensors"},
      {"a million values", SafetensorsFile("{\"x\": [" + Repeat("0,", 2'000'000) + "0]}", ""),
       "too many values"},
      {"empty name",
       SafetensorsFile(R"({"": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})", ""),
       "name"},
      {"long name",
       SafetensorsFile("{\"" + std::string(1 << 20, 'n') +
                           R"(": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})",
                       ""),
       "name"},
      {"NUL in the name",
       SafetensorsFile(R"({"a\u0000b": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})",
                       ""),
       "control character"},
      {"odd number of 4-bit floats",
       OneTensor(R"("dtype": "F4", "shape": [7], "data_offsets": [0, 4])"), "blocks of 2"},
  };
}

TEST(Safetensors, RefusesWhatTheFormatForbids) {
  for (const Bad& bad : BadFiles()) {
    const auto tensors = Read(bad.bytes);
    ASSERT_FALSE(tensors.ok()) << bad.name;
    EXPECT_EQ(tensors.status().code(), absl::StatusCode::kInvalidArgument) << bad.name;
    EXPECT_EQ(ReasonOf(tensors.status()), reason::kInvalidModelFile) << bad.name;
    EXPECT_THAT(FieldOf(tensors.status()), HasSubstr("x.safetensors")) << bad.name;
    EXPECT_THAT(std::string(tensors.status().message()), HasSubstr(bad.message)) << bad.name;
    EXPECT_LT(tensors.status().message().size(), 400u) << bad.name;
  }
}

// Whatever single byte of a header changes, the answer is a list or a refusal, never a crash, and a
// list only ever describes bytes of the file.
TEST(Safetensors, SurvivesEveryChangedByte) {
  const std::string good = SafetensorsBytes({{"a", {2, 3}, {1, 2, 3, 4, 5, 6}}, {"b", {1}, {7}}});
  const TempDir dir;
  for (size_t i = 0; i < good.size() - 28; ++i) {
    for (const char change : {'\0', '"', '9', '\xff'}) {
      std::string bytes = good;
      bytes[i] = change;
      WriteFile(dir.path() / "x", bytes);
      const auto file = InputFile::Open(dir.path(), "x");
      const auto tensors = ReadSafetensorsHeader(*file, 0);
      if (!tensors.ok()) continue;
      for (const StoredTensor& tensor : *tensors) {
        EXPECT_LE(tensor.offset + tensor.bytes, bytes.size()) << i;
      }
    }
  }
}

}  // namespace
}  // namespace babai
