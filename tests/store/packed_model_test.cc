#include "server/store/packed_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <random>

#include "kernels/formats/float16.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "tests/store/temp_dir.h"
#include "tests/store/tiny_manifest.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

// Random codes, scales and zeros: odd sizes, so that nothing is aligned by luck.
PackedInt RandomPacked(int64_t rows, int64_t cols, int64_t group, int bits, bool symmetric) {
  std::mt19937 random(rows * 31 + bits);
  const int64_t groups = (cols + group - 1) / group;
  std::vector<uint8_t> codes(rows * cols), zeros(symmetric ? 0 : rows * groups);
  std::vector<uint16_t> scales(rows * groups);
  for (auto& c : codes) c = random() % (1 << bits);
  for (auto& z : zeros) z = random() % (1 << bits);
  for (auto& s : scales) s = FloatToHalf(0.01f + (random() % 1000) * 1e-4f);
  return *PackInt(codes, scales, zeros, rows, cols, group, bits);
}

class PackedModelTest : public testing::Test {
 protected:
  ~PackedModelTest() override { ActiveFileCalls() = saved_; }

  fs::path staging() const { return temp_.path() / "staging"; }
  fs::path final_dir() const { return temp_.path() / "tiny"; }

  absl::StatusOr<Manifest> Write(bool replace = false) {
    auto writer = PackedModelWriter::Create(staging(), final_dir(), replace);
    if (!writer.ok()) return writer.status();
    return WriteInto(**writer);
  }

  absl::StatusOr<Manifest> WriteInto(PackedModelWriter& writer) {
    absl::Status status;
    const auto keep = [&](const absl::Status& s) {
      if (status.ok()) status = s;
    };
    keep(writer.AddPackedInt("blocks.0.q.weight", q_.view()));
    keep(writer.AddDense("blocks.0.attn_norm.weight", norm_, {33}, DType::kF32));
    keep(writer.AddPackedInt("blocks.0.k.weight", k_.view()));
    keep(writer.FinishFile("block-00000.safetensors"));
    keep(writer.AddDense("embed.weight", embed_, {5, 31}, DType::kBF16));
    keep(writer.AddDense("final_norm.weight", norm_, {33}, DType::kF16));
    keep(writer.FinishFile("rest.safetensors"));
    WriteText(writer.staging_dir() / "tokenizer.json", "{}");
    if (!status.ok()) return status;
    return writer.Commit(TinyManifest());
  }

  const FileCalls saved_ = ActiveFileCalls();
  TempDir temp_;
  const PackedInt q_ = RandomPacked(7, 96, 32, 3, /*symmetric=*/false);
  const PackedInt k_ = RandomPacked(5, 64, 64, 4, /*symmetric=*/true);
  const std::vector<float> norm_ = std::vector<float>(33, 1.25f);
  const std::vector<float> embed_ = std::vector<float>(155, -0.375f);
};

TEST_F(PackedModelTest, GivesBackWhatWasWritten) {
  const auto committed = Write();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_FALSE(fs::exists(staging()));
  const auto model = PackedModel::Open(final_dir());
  ASSERT_TRUE(model.ok()) << model.status();

  const auto q = (*model)->PackedIntTensor("blocks.0.q.weight");
  ASSERT_TRUE(q.ok());
  EXPECT_EQ(q->codes, absl::MakeConstSpan(q_.codes));
  EXPECT_EQ(q->scales, absl::MakeConstSpan(q_.scales));
  EXPECT_EQ(q->zeros, absl::MakeConstSpan(q_.zeros));
  EXPECT_EQ(q->cols, 96);
  std::vector<float> decoded(7 * 96);
  DecodeRows(q_.view(), 0, 7, decoded.data());
  EXPECT_EQ(*(*model)->ReadFloat("blocks.0.q.weight"), decoded);
  EXPECT_TRUE((*model)->PackedIntTensor("blocks.0.k.weight")->symmetric());
  EXPECT_EQ(*(*model)->ReadFloat("embed.weight"), embed_);
  EXPECT_EQ(*(*model)->ReadFloat("final_norm.weight"), norm_);
  EXPECT_EQ(*(*model)->ReadFloat("blocks.0.attn_norm.weight"), norm_);
  EXPECT_FALSE((*model)->Has("blocks.0.v.weight"));
  EXPECT_FALSE((*model)->ReadFloat("blocks.0.v.weight").ok());
  EXPECT_FALSE((*model)->PackedIntTensor("embed.weight").ok());
  std::vector<int64_t> shape;
  EXPECT_EQ((*model)->DenseTensor("embed.weight", &shape)->size(), 310u);
  EXPECT_EQ(shape, (std::vector<int64_t>{5, 31}));
  EXPECT_EQ((*model)->config().hidden, 32);
}

TEST_F(PackedModelTest, AlignsMatricesToTheirElements) {
  ASSERT_TRUE(Write().ok());
  const auto model = *PackedModel::Open(final_dir());
  std::vector<int64_t> shape;
  EXPECT_EQ(
      reinterpret_cast<uintptr_t>(model->DenseTensor("blocks.0.attn_norm.weight", &shape)->data()) %
          4,
      0u);
  EXPECT_EQ(
      reinterpret_cast<uintptr_t>(model->PackedIntTensor("blocks.0.q.weight")->codes.data()) % 4,
      0u);
}

TEST_F(PackedModelTest, ManifestCountsEveryByteAndSurvivesItsJson) {
  const auto committed = Write();
  ASSERT_TRUE(committed.ok());
  const int64_t bytes = q_.codes.size() + 2 * q_.scales.size() + q_.zeros.size() + k_.codes.size() +
                        2 * k_.scales.size() + 33 * 4 + 155 * 2 + 33 * 2;
  EXPECT_EQ(committed->packed_bytes, bytes);
  EXPECT_DOUBLE_EQ(committed->bits_per_weight, 8.0 * bytes / 1000);
  EXPECT_EQ(committed->files.size(), 3u);

  const auto again = ManifestFromJson(ManifestToJson(*committed));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ManifestToJson(*again), ManifestToJson(*committed));
  EXPECT_EQ(again->recipe_json, committed->recipe_json);
  EXPECT_EQ(again->config_json, committed->config_json);
  EXPECT_TRUE(std::isnan(again->linears[0].entropy_bits));
  EXPECT_EQ(again->linears[0].relative_error, 0.125);
}

TEST_F(PackedModelTest, SameContentGivesSameBytes) {
  ASSERT_TRUE(Write().ok());
  const auto first = PackedModel::Open(final_dir());
  fs::rename(final_dir(), temp_.path() / "first");
  ASSERT_TRUE(Write().ok());
  const auto second = PackedModel::Open(final_dir());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(ManifestToJson((*first)->manifest()), ManifestToJson((*second)->manifest()));
}

// One flipped bit anywhere in a file of the model is found, and the file named.
TEST_F(PackedModelTest, FindsAnyFlippedByte) {
  const auto committed = Write();
  ASSERT_TRUE(committed.ok());
  for (const auto& [name, file] : committed->files) {
    const std::string good = *ReadFile(final_dir() / name, 1 << 20);
    for (size_t at = 0; at < good.size(); at += 1 + good.size() / 97) {
      std::string bad = good;
      bad[at] ^= 0x10;
      WriteText(final_dir() / name, bad);
      const auto status = PackedModel::Open(final_dir()).status();
      ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << name << " byte " << at;
      ASSERT_EQ(ReasonOf(status), reason::kChecksumMismatch);
      ASSERT_EQ(FieldOf(status), name);
    }
    WriteText(final_dir() / name, good);
  }
  EXPECT_TRUE(PackedModel::Open(final_dir()).ok());
}

TEST_F(PackedModelTest, FindsTruncatedSwappedAndMissingFiles) {
  ASSERT_TRUE(Write().ok());
  const fs::path block = final_dir() / "block-00000.safetensors",
                 rest = final_dir() / "rest.safetensors";
  const std::string good = *ReadFile(block, 1 << 20);
  WriteText(block, good.substr(0, good.size() - 1));
  EXPECT_EQ(PackedModel::Open(final_dir(), /*verify=*/false).status().code(),
            absl::StatusCode::kDataLoss);
  WriteText(block, good);
  fs::rename(block, final_dir() / "x");
  fs::rename(rest, block);
  fs::rename(final_dir() / "x", rest);
  EXPECT_EQ(PackedModel::Open(final_dir()).status().code(), absl::StatusCode::kDataLoss);
  fs::remove(rest);
  EXPECT_EQ(PackedModel::Open(final_dir()).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(PackedModelTest, RefusesManifestsItCanNotHaveWritten) {
  ASSERT_TRUE(Write().ok());
  const std::string good = *ReadFile(final_dir() / "manifest.json", 1 << 20);
  const std::pair<std::string, std::string> edits[] = {
      {"babai-packed", "other"},
      {"\"packed_int\"", "\"packed_nonsense\""},
      {"\"bits\": 3", "\"bits\": 5"},
      {"\"bits\": 3", "\"bits\": -3"},
      {"\"bits\": 3", "\"bits\": \"3\""},
      {"\"group\": 32", "\"group\": 48"},
      {"\"BF16\"", "\"F32\""},
      {"rest.safetensors", "../rest.safetensors"},
      {"\"weights\"", "\"wights\""},
      {"\"hidden\"", "\"hiden\""},
      {"\"symmetric\": false", "\"symmetric\": true"}};
  for (const auto& [from, to] : edits) {
    std::string bad = good;
    ASSERT_NE(bad.find(from), std::string::npos) << from;
    bad.replace(bad.find(from), from.size(), to);
    WriteText(final_dir() / "manifest.json", bad);
    EXPECT_EQ(PackedModel::Open(final_dir()).status().code(), absl::StatusCode::kDataLoss) << to;
  }
  for (size_t length = 0; length < good.size(); length += 1 + good.size() / 50) {
    EXPECT_EQ(ManifestFromJson(good.substr(0, length)).status().code(),
              absl::StatusCode::kDataLoss);
  }
  std::string newer = good;
  newer.replace(newer.find("\"schema\": 1"), 11, "\"schema\": 3");
  EXPECT_EQ(ReasonOf(ManifestFromJson(newer).status()), reason::kSchemaTooNew);
}

TEST_F(PackedModelTest, RefusesWhatDoesNotFit) {
  auto writer = *PackedModelWriter::Create(staging(), final_dir());
  EXPECT_FALSE(writer->FinishFile("rest.safetensors").ok());
  EXPECT_FALSE(writer->AddDense("a", norm_, {32}, DType::kF32).ok());
  EXPECT_FALSE(writer->AddDense("a", norm_, {-33, -1}, DType::kF32).ok());
  EXPECT_FALSE(writer->AddDense("a", {{1.0f, 70000.0f}}, {2}, DType::kF16).ok());
  EXPECT_TRUE(writer->AddDense("a", {{1.0f, 70000.0f}}, {2}, DType::kBF16).ok());
  EXPECT_FALSE(writer->AddDense("a", norm_, {33}, DType::kF32).ok());  // twice
  PackedIntView short_view = q_.view();
  short_view.codes.remove_suffix(1);
  EXPECT_FALSE(writer->AddPackedInt("b", short_view).ok());
}

TEST_F(PackedModelTest, DroppedWriterLeavesNothing) {
  {
    auto writer = *PackedModelWriter::Create(staging(), final_dir());
    EXPECT_TRUE(writer->AddDense("a", norm_, {33}, DType::kF32).ok());
  }
  EXPECT_TRUE(fs::is_empty(temp_.path()));
}

TEST_F(PackedModelTest, ReplacesOnlyWhenAsked) {
  ASSERT_TRUE(Write().ok());
  EXPECT_EQ(ReasonOf(Write().status()), reason::kModelExists);
  const auto old = *PackedModel::Open(final_dir());
  ASSERT_TRUE(Write(/*replace=*/true).ok());
  EXPECT_FALSE(fs::exists(staging()));
  EXPECT_TRUE(PackedModel::Open(final_dir()).ok());
  EXPECT_EQ(*old->ReadFloat("embed.weight"), embed_);  // the mapping outlives the files' names
}

// Whichever write or sync fails, nothing half-written is visible and nothing is left.
TEST_F(PackedModelTest, AnyFailedCallLeavesNothing) {
  static int countdown;
  const FileCalls real = saved_;
  static FileCalls calls;
  calls = real;
  int failures = 0;
  for (int fail_at = 1;; ++fail_at) {
    countdown = fail_at;
    ActiveFileCalls().pwrite = [](int fd, const void* data, size_t bytes, off_t offset) -> ssize_t {
      if (--countdown != 0) return calls.pwrite(fd, data, bytes, offset);
      errno = ENOSPC;
      return -1;
    };
    ActiveFileCalls().fsync = [](int fd) {
      if (--countdown != 0) return calls.fsync(fd);
      errno = EIO;
      return -1;
    };
    const auto committed = Write();
    if (countdown > 0) {
      EXPECT_TRUE(committed.ok()) << committed.status();
      break;
    }
    ++failures;
    EXPECT_FALSE(committed.ok()) << "call " << fail_at;
    EXPECT_FALSE(fs::exists(staging())) << "call " << fail_at;
    // After the last rename only its durability is in doubt: a whole model may be there.
    if (fs::exists(final_dir())) {
      EXPECT_TRUE(PackedModel::Open(final_dir()).ok()) << "call " << fail_at;
      fs::remove_all(final_dir());
    }
  }
  EXPECT_GT(failures, 10);
}

}  // namespace
}  // namespace babai
