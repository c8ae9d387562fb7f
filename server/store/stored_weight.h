// From the tensors of a packed model's files to checked views of its weights.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/store/packed_model.h"

namespace babai {

// A tensor of one of the files, as that file's header has it.
struct MappedTensor {
  std::string_view type;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> bytes;
  bool taken = false;  // by a weight
};
using StoredTensors = std::map<std::string, MappedTensor>;

// What a name of the manifest stands for.
struct StoredWeight {
  StoredFormat format;
  absl::Span<const uint8_t> dense;
  std::optional<PackedLinearView> linear;
};

std::string_view TypeName(DType dtype);  // of a dense tensor

// Takes the tensors that make up the weight. InvalidArgument, saying what is wrong: one is missing,
// taken already, or does not fit the format.
absl::StatusOr<StoredWeight> MakeStoredWeight(const std::string& name, const StoredFormat& format,
                                              StoredTensors& tensors);

// InvalidArgument: a tensor belongs to no weight.
absl::Status CheckAllTaken(const StoredTensors& tensors);

}  // namespace babai
