#include "server/store/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/reason/reason.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

void PutModel(const Catalog& catalog, const std::string& name) {
  auto writer = PackedModelWriter::Create(catalog.NewStagingDir(name), catalog.ModelDir(name));
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->AddDense("a", {{1.0f}}, {1}, DType::kF32).ok());
  ASSERT_TRUE((*writer)->FinishFile("rest.safetensors").ok());
  Manifest manifest;
  manifest.name = name;
  ASSERT_TRUE((*writer)->Commit(manifest).ok());
}

TEST(ModelName, HasOneAlphabet) {
  for (const char* name : {"a", "0", "llama-3.2_1b", "a..b"})
    EXPECT_TRUE(ValidateModelName(name, "name").ok());
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("A"), std::string("-a"),
        std::string("a/b"), std::string("a b"), std::string("a\0b", 3), std::string(64, 'a'),
        std::string("../a")}) {
    const auto status = ValidateModelName(name, "name");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(FieldOf(status), "name");
  }
}

TEST(Catalog, ListsReadsAndDeletesModels) {
  TempDir temp;
  const auto catalog = *Catalog::Open(temp.path() / "data");
  PutModel(*catalog, "b");
  PutModel(*catalog, "a");
  fs::create_directory(catalog->ModelDir("half"));  // no manifest: not a model
  EXPECT_THAT(catalog->Names(), ElementsAre("a", "b"));
  EXPECT_EQ(catalog->ReadManifest("a")->name, "a");
  EXPECT_EQ(catalog->StoredBytes("a"),
            static_cast<int64_t>(fs::file_size(catalog->ModelDir("a") / "manifest.json") +
                                 fs::file_size(catalog->ModelDir("a") / "rest.safetensors")));
  ASSERT_TRUE(catalog->Delete("a").ok());
  EXPECT_THAT(catalog->Names(), ElementsAre("b"));
  EXPECT_TRUE(fs::is_empty(temp.path() / "data" / "tmp"));
  for (const char* name : {"a", "half", "../models/b", "", "B"}) {
    EXPECT_EQ(ReasonOf(catalog->ReadManifest(name).status()), reason::kModelNotFound) << name;
    EXPECT_EQ(ReasonOf(catalog->Delete(name)), reason::kModelNotFound) << name;
    EXPECT_FALSE(catalog->Exists(name)) << name;
    EXPECT_EQ(catalog->StoredBytes(name), 0) << name;
  }
}

TEST(Catalog, RemovesWhatAnInterruptedJobLeft) {
  TempDir temp;
  fs::path staging;
  {
    const auto catalog = *Catalog::Open(temp.path());
    PutModel(*catalog, "kept");
    staging = catalog->NewStagingDir("x");
    EXPECT_NE(staging, catalog->NewStagingDir("x"));
    fs::create_directory(staging);
    WriteText(staging / "draft", "x");
  }
  const auto catalog = *Catalog::Open(temp.path());
  EXPECT_FALSE(fs::exists(staging));
  EXPECT_THAT(catalog->Names(), ElementsAre("kept"));
}

TEST(Catalog, ServesOneOwnerAtATime) {
  TempDir temp;
  auto first = Catalog::Open(temp.path());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(Catalog::Open(temp.path()).status().code(), absl::StatusCode::kFailedPrecondition);
  first->reset();
  EXPECT_TRUE(Catalog::Open(temp.path()).ok());
}

}  // namespace
}  // namespace babai
