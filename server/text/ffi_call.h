// Values across the C ABI of server/text/ffi.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/text/ffi/babai_text.h"

namespace babai {

inline babai_text_slice Slice(std::string_view text) { return {text.data(), text.size()}; }

// The refusal that the thread's last call left. `field` names what the caller gave: a file of the
// model, a text, ids.
absl::Status FfiStatus(babai_text_code code, std::string_view field);

// What a call returned in a buffer, which is given back.
absl::StatusOr<std::string> Take(babai_text_code code, std::string_view field,
                                 babai_text_bytes bytes);
absl::StatusOr<std::vector<int32_t>> Take(babai_text_code code, std::string_view field,
                                          babai_text_ids ids);

}  // namespace babai
