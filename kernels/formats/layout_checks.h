// Rules that several formats check. Internal to kernels/formats.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace babai {

// A group divides the row, or is the row.
inline bool GoodGroup(int64_t cols, int64_t group) {
  return group >= 1 && (group >= cols || cols % group == 0);
}

// All below: InvalidArgument naming `what` and the rule.

// rows and cols are at least 1 and rows * cols does not overflow.
absl::Status CheckDimensions(int64_t rows, int64_t cols);
absl::Status CheckLength(absl::string_view what, size_t got, int64_t want);
// Every value is below 2^bits.
absl::Status CheckRange(absl::string_view what, absl::Span<const uint8_t> values, int bits);
// Every fp16 bit pattern is a finite number.
absl::Status CheckFinite(absl::string_view what, absl::Span<const uint16_t> halves);

}  // namespace babai
