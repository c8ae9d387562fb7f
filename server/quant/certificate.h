// What is known about a quantized linear without running the model: see Certificate in layer.h.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/formats/packed_int.h"
#include "server/quant/grid.h"
#include "server/quant/layer.h"
#include "server/quant/solver.h"

namespace babai {

// 1/4 sum over rows and columns of s^2 L_pp^2 (L = identity when `factor` is null): no sweep that
// rounds to all integers can lose more (arXiv:2507.18553, Theorem 5).
double BabaiBound(const UniformGrid& grid, const Factor* factor);

// 1/2 log2(arithmetic / geometric mean of L_pp^2): the bits a weight lost by equal steps against
// steps proportional to 1/L_pp.
double RateGapBits(const Factor& factor);

// Empirical entropy of the codes, in bits a code.
double EntropyBits(absl::Span<const uint8_t> codes);

Certificate MakeCertificate(const Solution<uint8_t>& solution, const UniformGrid& grid,
                            const Factor* factor, const PackedInt& packed);

}  // namespace babai
