// From a packed linear to the tensors that store it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/store/packed_model.h"

namespace babai {

// A tensor NAME + suffix; its bytes are those of the linear.
struct LinearPart {
  std::string suffix;
  std::string_view type;  // of safetensors
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> bytes;
};

// Every rule of the formats. InvalidArgument names the one that is broken.
absl::Status CheckLinear(const PackedLinearView& w);

// Both require a linear that CheckLinear() accepts.
StoredFormat FormatOf(const PackedLinearView& w);
std::vector<LinearPart> PartsOf(const PackedLinearView& w);

}  // namespace babai
