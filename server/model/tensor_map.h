// Finds every canonical tensor of a model among the stored ones and checks its shape.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/model/checkpoint.h"
#include "server/model/source_config.h"
#include "server/model/stored_tensor.h"

namespace babai {

// How one canonical tensor comes out of a stored one.
struct TensorBinding {
  TensorInfo info;
  StoredTensor stored;
  bool transposed = false;       // stored [in, rows of all parts]
  int64_t first_row = 0;         // of this part within a fused tensor
  int64_t interleaved_head = 0;  // head size whose rows pair (2i, 2i + 1); 0: rows are in order
};

struct TensorMap {
  std::vector<TensorBinding> bindings;  // in canonical order
  int64_t ignored = 0;                  // stored tensors that the model does not use
};

// `file_names[t.file]` is where a stored tensor t lies; `main_file` is blamed for one that is
// missing. InvalidArgument: a tensor is missing, has another shape than `source` asks for, is
// stored in a type that is not read, or has one name twice.
absl::StatusOr<TensorMap> MapTensors(const SourceConfig& source,
                                     const std::vector<StoredTensor>& tensors,
                                     absl::Span<const std::string> file_names,
                                     const std::string& main_file);

}  // namespace babai
