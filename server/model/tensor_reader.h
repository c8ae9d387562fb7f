// A stored tensor's bytes to fp32 values in canonical order.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/model/input_file.h"
#include "server/model/tensor_map.h"

namespace babai {

// The whole tensor, row-major. Reads through a buffer of about a megabyte: peak memory is the
// result. NON_FINITE_WEIGHTS, naming file and stored tensor; OUT_OF_MEMORY; what
// InputFile::ReadAt() refuses.
absl::StatusOr<std::vector<float>> ReadTensor(const InputFile& file, const TensorBinding& binding);

// The same for a small tensor that is no weight (RoPE factors): stored order, not checked for NaN.
absl::StatusOr<std::vector<float>> ReadStored(const InputFile& file, const StoredTensor& stored);

}  // namespace babai
