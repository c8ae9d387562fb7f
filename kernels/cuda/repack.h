// From F1, the layout on disk, to the execution layout of packed_layout.h, on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/formats/packed_int.h"

namespace babai::cuda {

// The shape a repacked `w` has, any scale_exponent. InvalidArgument: group is not 32, 64, 128 or a
// whole row (>= cols), cols is no multiple of 32, or a size does not fit the kernels' 32-bit
// arithmetic.
absl::StatusOr<PackedShape> GpuShape(const PackedIntView& w);

// The least PackedShape::scale_exponent for these fp16 scales.
int ScaleExponent(absl::Span<const uint16_t> scales);

// Fills a buffer of GpuShape(w).bytes() bytes. The device copy must be 128-byte aligned.
absl::StatusOr<std::vector<uint8_t>> RepackForGpu(const PackedIntView& w);

}  // namespace babai::cuda
