// Packed linears of every kind, written, read back, and lied about.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "server/model/input_file.h"
#include "server/model/safetensors.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "server/store/packed_model.h"
#include "tests/kernels/formats_fixtures.h"
#include "tests/store/temp_dir.h"
#include "tests/store/tiny_manifest.h"

namespace babai {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kRows = 72, kCols = 96;  // two strips, blocks of 8 and of 32
constexpr char kFile[] = "block-00000.safetensors";

PackedInt AnyInt() {
  return *PackInt(RandomCodes(kRows * kCols, 3, 1), RandomHalves(kRows * 3, 0.01f, 0.1f, 2),
                  RandomCodes(kRows * 3, 3, 3), kRows, kCols, 32, 3);
}

// One of each kind, the second of a pair with everything around it.
std::map<std::string, PackedLinear> EveryKind() {
  std::map<std::string, PackedLinear> linears;
  linears["int"].base = AnyInt();
  linears["shared"].base = RandomPackedTable(kRows, kCols, 32, 3, TableKind::kShared, 1);
  linears["row"].base = RandomPackedTable(kRows, kCols, 0, 4, TableKind::kRow, 2);
  linears["binary"].base = RandomPackedTable(kRows, kCols, 0, 2, TableKind::kBinary, 3);
  linears["entropy"].base = RandomEntropyCoded(kRows, kCols, 2, 0.7, 4);
  const auto bare = linears;
  for (const auto& [name, w] : bare) {
    PackedLinear& full = linears[name + "_full"];
    full = w;
    full.sparse = RandomSparseRows(kRows, kCols, 40, 5);
    if (name != "entropy") full.col_scales = RandomHalves(kCols, 0.5f, 2, 6);
    full.in = {32, 0xfedcba9876543210u};
    full.out = {8, 3};
  }
  return linears;
}

std::vector<float> Decoded(const PackedLinearView& w) {
  std::vector<float> values(w.rows() * w.cols());
  EXPECT_TRUE(DecodeWeight(w, values.data()).ok());
  return values;
}

class LinearStoreTest : public testing::Test {
 protected:
  fs::path dir() const { return temp_.path() / "tiny"; }

  Manifest Write(const std::map<std::string, PackedLinear>& linears) {
    fs::remove_all(dir());
    auto writer = *PackedModelWriter::Create(temp_.path() / "staging", dir());
    for (const auto& [name, w] : linears) {
      EXPECT_TRUE(writer->AddLinear(name, w.view()).ok()) << name;
    }
    EXPECT_TRUE(writer->FinishFile(kFile).ok());
    return *writer->Commit(TinyManifest());
  }

  absl::Status Open() const { return PackedModel::Open(dir(), /*verify=*/false).status(); }

  // The model with `bytes` of a tensor changed, as a file with a matching sha256 could have them.
  absl::Status OpenWith(const std::string& tensor, int64_t at, std::vector<uint8_t> bytes) {
    const auto file = *InputFile::Open(dir(), kFile);
    const auto header = ReadSafetensorsHeader(file, 0);
    for (const StoredTensor& t : *header) {
      if (t.name != tensor) continue;
      const std::string good = *ReadFile(dir() / kFile, 1 << 24);
      std::string bad = good;
      bad.replace(t.offset + (at < 0 ? at + t.bytes : at), bytes.size(),
                  std::string(bytes.begin(), bytes.end()));
      WriteText(dir() / kFile, bad);
      const absl::Status opened = Open();
      WriteText(dir() / kFile, good);
      return opened;
    }
    ADD_FAILURE() << "no tensor " << tensor;
    return absl::OkStatus();
  }

  absl::Status OpenWithManifest(const std::string& from, const std::string& to) {
    const std::string good = *ReadFile(dir() / "manifest.json", 1 << 20);
    std::string bad = good;
    EXPECT_NE(bad.find(from), std::string::npos) << from;
    bad.replace(bad.find(from), from.size(), to);
    WriteText(dir() / "manifest.json", bad);
    const absl::Status opened = Open();
    WriteText(dir() / "manifest.json", good);
    return opened;
  }

  TempDir temp_;
};

TEST_F(LinearStoreTest, GivesBackEveryKind) {
  const auto linears = EveryKind();
  int64_t bytes = 0;
  for (const auto& [name, w] : linears) {
    bytes += w.bytes() - (w.in.identity() ? 0 : 16) - (w.out.identity() ? 0 : 16);
  }
  const Manifest committed = Write(linears);
  EXPECT_EQ(committed.packed_bytes, bytes);
  const auto model = PackedModel::Open(dir());
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(ManifestToJson((*model)->manifest()), ManifestToJson(committed));
  for (const auto& [name, w] : linears) {
    const auto stored = (*model)->LinearTensor(name);
    ASSERT_TRUE(stored.ok()) << name;
    EXPECT_EQ(stored->base.index(), w.base.index());
    EXPECT_EQ(stored->in, w.in);
    EXPECT_EQ(stored->out, w.out);
    EXPECT_EQ(Decoded(*stored), Decoded(w.view())) << name;
    EXPECT_EQ(*(*model)->ReadFloat(name), Decoded(w.view())) << name;
    EXPECT_EQ((*model)->PackedIntTensor(name).ok(), name == "int") << name;
    EXPECT_EQ((*model)->Format(name).sparse, w.sparse.has_value());
  }
  EXPECT_FALSE((*model)->LinearTensor("none").ok());
}

// An older release can read what it could have written, and says of the rest that it can not.
TEST_F(LinearStoreTest, SchemaIsTheOldestThatWillDo) {
  std::map<std::string, PackedLinear> linears;
  linears["int"].base = AnyInt();
  EXPECT_EQ(Write(linears).schema, 1);
  EXPECT_EQ((*PackedModel::Open(dir()))->manifest().schema, 1);
  linears["int"].in = {32, 1};
  EXPECT_EQ(Write(linears).schema, 2);
  EXPECT_EQ((*PackedModel::Open(dir()))->manifest().schema, 2);
  linears["int"].in = {};
  linears["entropy"].base = RandomEntropyCoded(kRows, kCols, 2, 0.7, 4);
  EXPECT_EQ(Write(linears).schema, 2);
}

TEST_F(LinearStoreTest, SparseWithoutEntriesIsNotStored) {
  std::map<std::string, PackedLinear> linears;
  linears["int"].base = AnyInt();
  linears["int"].sparse = SparseRows{std::vector<uint32_t>(kRows + 1), {}, {}, kRows, kCols};
  EXPECT_EQ(Write(linears).schema, 1);
  EXPECT_TRUE((*PackedModel::Open(dir()))->PackedIntTensor("int").ok());
}

TEST_F(LinearStoreTest, WriterRefusesPartsThatBreakARule) {
  auto writer = *PackedModelWriter::Create(temp_.path() / "staging", dir());
  const auto linears = EveryKind();
  const auto refused = [&](const std::string& name, auto change) {
    PackedLinear bad = linears.at(name);
    change(bad);
    return absl::IsInvalidArgument(writer->AddLinear(name, bad.view()));
  };
  EXPECT_TRUE(refused("int_full", [](auto& w) { w.in.block = 64; }));
  EXPECT_TRUE(refused("int_full", [](auto& w) { w.col_scales[0] = 0x7c00; }));
  EXPECT_TRUE(refused("int_full", [](auto& w) { w.sparse->columns[0] = kCols; }));
  EXPECT_TRUE(refused("row", [](auto& w) { std::get<PackedTable>(w.base).table[0] = 0x7c00; }));
  EXPECT_TRUE(refused("entropy", [](auto& w) { std::get<EntropyCoded>(w.base).model[0] = 0; }));
}

TEST_F(LinearStoreTest, LyingTensorsAreRefused) {
  Write(EveryKind());
  ASSERT_TRUE(Open().ok());
  const std::vector<uint8_t> nan = {0x00, 0x7e}, huge = {0xff, 0xff, 0xff, 0xff};
  const struct {
    const char* tensor;
    int64_t at;  // from the end if negative
    std::vector<uint8_t> bytes;
  } lies[] = {
      {"shared.scales", 4, nan},
      {"shared.table", 2, nan},
      {"row.table", -2, nan},
      {"binary.table", 0, nan},
      {"entropy.row_scales", 6, nan},
      {"entropy.col_scales", -2, nan},
      {"entropy.model", 0, {0}},
      {"entropy.model", 0, {33}},
      {"entropy.strips", 0, huge},
      {"entropy.strips", 4, huge},
      {"entropy.strips", -4, huge},
      {"entropy.strips", 4, {1}},
      {"int_full.col_scales", 10, nan},
      {"int_full.sparse_rows", 0, {1}},
      {"int_full.sparse_rows", 8, huge},
      {"int_full.sparse_rows", -4, huge},
      {"int_full.sparse_columns", 0, {kCols, 0}},
      {"int_full.sparse_columns", 0, {0xff, 0xff}},
      {"int_full.sparse_values", 0, nan},
      {"entropy_full.sparse_values", -2, nan},
  };
  for (const auto& lie : lies) {
    const absl::Status opened = OpenWith(lie.tensor, lie.at, lie.bytes);
    EXPECT_EQ(opened.code(), absl::StatusCode::kDataLoss) << lie.tensor << " at " << lie.at;
    EXPECT_THAT(std::string(opened.message()),
                testing::HasSubstr(std::string(lie.tensor).substr(0, 3)));
  }
  EXPECT_TRUE(Open().ok());
}

// Open() does not decode: a stream that does not is found by who does.
TEST_F(LinearStoreTest, StreamsThatDoNotDecodeAreDataLoss) {
  Write(EveryKind());
  auto bytes = *ReadFile(dir() / kFile, 1 << 24);
  const auto file = *InputFile::Open(dir(), kFile);
  const auto header = ReadSafetensorsHeader(file, 0);
  for (const StoredTensor& t : *header) {
    if (t.name == "entropy.stream") bytes[t.offset + t.bytes / 2] ^= 0x55;
  }
  WriteText(dir() / kFile, bytes);
  const auto model = *PackedModel::Open(dir(), /*verify=*/false);
  EXPECT_EQ(model->ReadFloat("entropy").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(model->ReadFloat("entropy_full").ok());
}

TEST_F(LinearStoreTest, LyingManifestsAreRefused) {
  const auto every = EveryKind();
  const auto with = [&](const char* name) {
    Write({{name, every.at(name)}});
    EXPECT_TRUE(Open().ok());
  };
  const auto expect_refused = [&](const std::string& from, const std::string& to) {
    EXPECT_EQ(OpenWithManifest(from, to).code(), absl::StatusCode::kDataLoss) << to;
  };
  with("shared");
  expect_refused("\"shared\",\n", "\"row\",\n");
  expect_refused("\"shared\",\n", "\"binary\",\n");
  expect_refused("\"shared\",\n", "\"other\",\n");
  expect_refused("\"bits\": 3", "\"bits\": 4");
  expect_refused("\"bits\": 3", "\"bits\": 4294967299");
  expect_refused("\"group\": 32", "\"group\": 48");
  expect_refused("\"group\": 32", "\"group\": 9223372036854775807");
  expect_refused("packed_table", "packed_int");
  expect_refused("packed_table", "entropy_coded");
  expect_refused("\"shape\": [\n    72", "\"shape\": [\n    9223372036854775807");
  expect_refused("\"shape\": [\n    72", "\"shape\": [\n    71");
  expect_refused("\"bits\": 3", "\"sparse\": true, \"bits\": 3");
  expect_refused("\"bits\": 3", "\"col_scales\": true, \"bits\": 3");
  with("entropy");
  expect_refused("\"shape\": [\n    72", "\"shape\": [\n    73");
  expect_refused("\"shape\": [\n    72,\n    96", "\"shape\": [\n    96,\n    72");
  expect_refused("\"entropy_coded\"", "\"entropy_coded\", \"col_scales\": true");
  expect_refused("\"entropy_coded\"", "\"dense\", \"dtype\": \"F16\"");
  with("int_full");
  expect_refused("\"sparse\": true", "\"sparse\": false");
  expect_refused("\"sparse\": true", "\"sparse\": 1");
  expect_refused("\"col_scales\": true", "\"col_scales\": false");
  for (const char* block : {"0", "1", "-32", "3", "64", "96", "9223372036854775807", "32.5"}) {
    expect_refused("\"block\": 32", std::string("\"block\": ") + block);
  }
  expect_refused("\"seed\": 3", "\"seed\": -3");
  expect_refused("\"seed\": 3", "\"sead\": 3");
  expect_refused("\"packed_int\"", "\"dense\", \"dtype\": \"F32\"");
}

TEST_F(LinearStoreTest, FindsAnyFlippedByte) {
  Write(EveryKind());
  const std::string good = *ReadFile(dir() / kFile, 1 << 24);
  for (size_t at = 0; at < good.size(); at += 1 + good.size() / 61) {
    std::string bad = good;
    bad[at] ^= 0x10;
    WriteText(dir() / kFile, bad);
    ASSERT_EQ(PackedModel::Open(dir()).status().code(), absl::StatusCode::kDataLoss) << at;
  }
}

}  // namespace
}  // namespace babai
