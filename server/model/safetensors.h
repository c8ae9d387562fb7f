// The header of a safetensors file: u64 length, JSON of that length, then the tensors' bytes.
// https://huggingface.co/docs/safetensors
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "server/model/input_file.h"
#include "server/model/stored_tensor.h"

namespace babai {

// Every tensor of `file`, in the order of their bytes, with StoredTensor::file = `index`.
// Refuses (INVALID_MODEL_FILE, naming the tensor) whatever the format forbids: a header over 16 MiB
// or beyond the file, duplicate names, unknown dtypes, sizes that disagree with dtype and shape,
// and bytes of the file that belong to no tensor or to two.
absl::StatusOr<std::vector<StoredTensor>> ReadSafetensorsHeader(const InputFile& file, int index);

}  // namespace babai
