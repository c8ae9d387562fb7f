#include "tests/engine/tiny_packed.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/packed_int.h"
#include "server/text/tokenizer.h"
#include "tests/engine/every_kind.h"

namespace babai {
namespace {

constexpr int64_t kGroup = 32;

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << value.status() << std::endl;
  std::abort();
}

void Must(const absl::Status& status) { Must<int>(status.ok() ? absl::StatusOr<int>(0) : status); }

PackedInt Round(const std::vector<float>& w, int64_t rows, int64_t cols, int bits) {
  const int top = (1 << bits) - 1;
  std::vector<uint8_t> codes(rows * cols), zeros;
  std::vector<uint16_t> scales;
  for (int64_t first = 0; first < rows * cols; first += kGroup) {
    const auto [low, high] = std::minmax_element(w.begin() + first, w.begin() + first + kGroup);
    const float least = std::min(*low, 0.0f), range = std::max(*high, 0.0f) - least;
    scales.push_back(FloatToHalf(std::max(range / static_cast<float>(top), 1e-4f)));
    const float scale = HalfToFloat(scales.back());
    zeros.push_back(std::clamp<int>(std::lround(-least / scale), 0, top));
    for (int64_t i = first; i < first + kGroup; ++i) {
      codes[i] = std::clamp<int>(std::lround(w[i] / scale) + zeros.back(), 0, top);
    }
  }
  return Must(PackInt(codes, scales, zeros, rows, cols, kGroup, bits));
}

bool IsLinear(const TensorInfo& info) {
  return info.shape.size() == 2 && info.name != "embed_positions.weight" &&
         info.shape[1] % kGroup == 0;
}

}  // namespace

std::unique_ptr<Checkpoint> OpenTiny(const TinyModel& tiny, const std::filesystem::path& scratch) {
  WriteTinyHfModel(tiny, scratch);
  return Must(OpenCheckpoint(scratch));
}

void PackTiny(const Checkpoint& checkpoint, int bits, const std::filesystem::path& staging_dir,
              const std::filesystem::path& final_dir, Around around) {
  auto writer = Must(PackedModelWriter::Create(staging_dir, final_dir));
  for (const TensorInfo& info : checkpoint.tensors()) {
    const std::vector<float> values = Must(checkpoint.Read(info.name));
    if (bits > 0 && IsLinear(info)) {
      PackedLinear packed{.base = Round(values, info.shape[0], info.shape[1], bits)};
      if (absl::StartsWith(info.name, "blocks.")) {
        if (around == Around::kEverything) Surround(packed, bits);
        if (around == Around::kSparse) {
          packed.sparse = RandomSparseRows(info.shape[0], info.shape[1], 40, bits);
        }
      }
      Must(writer->AddLinear(info.name, packed.view()));
    } else {
      Must(writer->AddDense(info.name, values, info.shape, DType::kF32));
    }
  }
  Must(writer->FinishFile("rest.safetensors"));
  const auto tokenizer = Must(MakeTokenizer(checkpoint.tokenizer()));
  Must(tokenizer->Save(writer->staging_dir()));
  Manifest manifest;
  manifest.name = final_dir.filename().string();
  manifest.tool_version = "test";
  manifest.config_json = ModelConfigToJson(checkpoint.config());
  manifest.recipe_json = "{}";
  manifest.weights = 1;
  Must(writer->Commit(std::move(manifest)));
}

}  // namespace babai
