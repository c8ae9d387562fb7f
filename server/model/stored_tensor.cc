#include "server/model/stored_tensor.h"

namespace babai {

absl::StatusOr<uint64_t> StoredBytes(const ElementType& type, const std::vector<int64_t>& shape) {
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % type.block_elements != 0) {
    return absl::OutOfRangeError("rows of " + std::to_string(row) +
                                 " do not divide into blocks of " +
                                 std::to_string(type.block_elements));
  }
  uint64_t elements = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(elements, static_cast<uint64_t>(size), &elements)) {
      return absl::OutOfRangeError("shape " + ShapeText(shape) + " overflows");
    }
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(elements / type.block_elements, type.block_bytes, &bytes)) {
    return absl::OutOfRangeError("shape " + ShapeText(shape) + " overflows");
  }
  return bytes;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace babai
