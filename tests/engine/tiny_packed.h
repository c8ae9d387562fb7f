// Tiny random models as the engine loads them: packed on disk, from fixed seeds.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "server/model/checkpoint.h"
#include "server/store/packed_model.h"
#include "tests/model/checkpoint_builder.h"

namespace babai {

// The checkpoint of a tiny model, written under `scratch`.
std::unique_ptr<Checkpoint> OpenTiny(const TinyModel& tiny, const std::filesystem::path& scratch);

// Packs a checkpoint as `final_dir`: its linears rounded to the nearest of `bits` bits in groups of
// 32, with zero points (0: kept dense, fp32), head and embedding too; those of the blocks with
// nothing, sparse values or everything (every_kind.h) around them. Holds a tokenizer.
enum class Around { kNothing, kSparse, kEverything };
void PackTiny(const Checkpoint& checkpoint, int bits, const std::filesystem::path& staging_dir,
              const std::filesystem::path& final_dir, Around around = Around::kNothing);

}  // namespace babai
