// Writes one safetensors file (https://github.com/huggingface/safetensors, "Format"), so that a
// memory map of it can be used as it lies:
//
//   [0, 8)        length of the header, little-endian: always 16384 - 8
//   [8, 16384)    JSON header, padded with spaces
//   [16384, ...)  tensors, without gaps (the format allows none)
//
// Tensors come in the order of the largest power of two, up to 64, that divides their size; equal
// ones in the order they were added. So every tensor begins at a multiple of that power: matrices
// are aligned to cache lines, and any tensor at least to its own element.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/store/file.h"

namespace babai {

// Not thread-safe. Large tensors go to disk at once; small uneven ones wait in memory for Finish().
class SafetensorsWriter {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::filesystem::path& path);

  // Adds a tensor of `bytes` bytes in element type `dtype` ("F32", "F16", "BF16", "U8"). `produce`
  // is called with the ranges [offset, offset + out.size()) of the tensor, in order, and fills
  // them.
  absl::Status Add(std::string_view name, std::string_view dtype, const std::vector<int64_t>& shape,
                   int64_t bytes, absl::FunctionRef<void(int64_t, absl::Span<uint8_t>)> produce);

  // Writes what waits and the header, and syncs. Internal: the header outgrew its place.
  absl::Status Finish();

  int64_t tensor_bytes() const { return tensor_bytes_; }

 private:
  struct Entry {
    std::string name, dtype;
    std::vector<int64_t> shape;
    int64_t bytes = 0;
    int64_t offset = 0;            // in the data part
    std::vector<uint8_t> waiting;  // content, until it is written
  };

  explicit SafetensorsWriter(OutputFile file) : file_(std::move(file)) {}
  absl::Status Place(Entry& entry, absl::Span<const uint8_t> content);
  absl::Status WriteHeader();

  OutputFile file_;
  std::vector<Entry> placed_, waiting_;
  int64_t data_end_ = 0;
  int64_t tensor_bytes_ = 0;
};

}  // namespace babai
