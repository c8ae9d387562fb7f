// Real vocabularies and texts ($BABAI_DATA): ids as llama.cpp publishes them for its own tests, and
// streams over real text.
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "gtest/gtest.h"
#include "server/model/gguf.h"
#include "server/model/tokenizer_source.h"
#include "tests/text/tiny_tokenizers.h"

namespace babai {
namespace {

using Ids = std::vector<int32_t>;

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::shared_ptr<const Tokenizer> FromGguf(const std::filesystem::path& path) {
  const auto file = InputFile::Open(path.parent_path(), path.filename().string());
  EXPECT_TRUE(file.ok()) << file.status();
  const auto header = ReadGgufHeader(*file, 0);
  EXPECT_TRUE(header.ok()) << header.status();
  const auto source = ReadGgufTokenizer(*header, path.filename().string());
  EXPECT_TRUE(source.ok()) << source.status();
  return testing::Make(*source);
}

// Texts between separator lines; ids of one text a line.
std::vector<std::string> ReadTexts(const std::filesystem::path& path) {
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  const std::string all = ReadFile(path);
  std::vector<std::string> texts;
  size_t start = 0;
  for (size_t end; (end = all.find(kSeparator, start)) != std::string::npos;
       start = end + kSeparator.size()) {
    texts.push_back(all.substr(start, end - start));
  }
  return texts;
}

std::vector<Ids> ReadIds(const std::filesystem::path& path) {
  std::vector<Ids> all;
  std::istringstream lines(ReadFile(path));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    all.emplace_back(std::istream_iterator<int32_t>(words), std::istream_iterator<int32_t>());
  }
  return all;
}

class Fixture : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const char* data = std::getenv("BABAI_DATA");
    if (data == nullptr) GTEST_SKIP() << "ALL TESTS SKIPPED: BABAI_DATA is not set";
    data_ = data;
    name_ = data_ / "tokenizer" / GetParam();
    tokenizer_ = FromGguf(name_);
    ASSERT_NE(tokenizer_, nullptr);
  }

  std::filesystem::path data_, name_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_P(Fixture, EncodesAsPublished) {
  const std::vector<std::string> texts = ReadTexts(name_.string() + ".inp");
  const std::vector<Ids> want = ReadIds(name_.string() + ".out");
  ASSERT_GT(texts.size(), 40);
  ASSERT_GE(want.size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = tokenizer_->Encode(texts[i], /*add_special=*/false, /*parse_special=*/false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, want[i]) << "text " << i << ": " << texts[i];
  }
}

TEST_P(Fixture, StreamsRealText) {
  for (const char* name : {"cal-multilingual.txt", "cal-technical.txt"}) {
    const std::string text = ReadFile(data_ / "text" / name);
    const auto ids = tokenizer_->Encode(text, false, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    const auto stream = tokenizer_->NewDetokenizer(/*skip_special=*/true);
    std::string joined;
    for (const int32_t id : *ids) joined += *stream->Push(id);
    EXPECT_TRUE(joined + stream->Flush() == text) << name;
    EXPECT_TRUE(*tokenizer_->Decode(*ids, true) == text) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, Fixture,
                         ::testing::Values("ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-spm.gguf"));

}  // namespace
}  // namespace babai
