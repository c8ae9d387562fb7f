#include "kernels/formats/layout_checks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/formats/bit_stream.h"
#include "kernels/formats/float16.h"

namespace babai {

absl::Status CheckDimensions(int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows ", rows, ", cols ", cols, ": both must be at least 1"));
  }
  if (ProductOrMinusOne(rows, cols) < 0) {
    return absl::InvalidArgumentError(absl::StrCat(rows, " x ", cols, ": too large"));
  }
  return absl::OkStatus();
}

absl::Status CheckLength(absl::string_view what, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) == want) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " holds ", got, " values, needs ", want));
}

absl::Status CheckRange(absl::string_view what, absl::Span<const uint8_t> values, int bits) {
  const auto largest = std::max_element(values.begin(), values.end());
  if (largest == values.end() || *largest < (1 << bits)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " ", int{*largest}, " does not fit ", bits, " bits"));
}

absl::Status CheckFinite(absl::string_view what, absl::Span<const uint16_t> halves) {
  const auto bad = std::find_if_not(halves.begin(), halves.end(), HalfIsFinite);
  if (bad == halves.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " number ", bad - halves.begin(), " is not finite"));
}

}  // namespace babai
