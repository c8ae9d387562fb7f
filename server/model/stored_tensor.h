// One tensor as a file's header describes it, after the header was checked against the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/element_type.h"

namespace babai {

struct StoredTensor {
  std::string name;  // as the file spells it
  const ElementType* type = nullptr;
  std::vector<int64_t> shape;  // slowest dimension first, whatever the file's order
  int file = 0;                // index into the checkpoint's files
  uint64_t offset = 0;         // of the first byte, from the start of the file
  uint64_t bytes = 0;
};

// The bytes that `shape` elements of `type` take; rows (the last dimension) hold whole blocks.
// OutOfRange: a product overflows, or a row does not divide into blocks.
absl::StatusOr<uint64_t> StoredBytes(const ElementType& type, const std::vector<int64_t>& shape);

// "[49152, 576]"
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace babai
