// What is known about a quantized linear without running the model: see Certificate in layer.h.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "server/quant/grid.h"
#include "server/quant/layer.h"
#include "server/quant/solver.h"

namespace babai {

// The most that a sweep can lose that clips nothing and rounds to the nearest value: rows and
// columns add up 1/4 gap^2 L_pp^2 (L = identity when `factor` is null), gap being the distance of
// neighbouring values: in a table, that of the value taken to the further of its two neighbours
// (arXiv:2507.18553, Theorem 5). Says nothing about integers whose values are not their steps.
double BabaiBound(const UniformGrid& grid, const Factor* factor);
// The same, and the gap below, from L_pp^2 by original column.
double BabaiBound(const UniformGrid& grid, absl::Span<const double> squared_pivots);
double RateGapBits(absl::Span<const double> squared_pivots);
double BabaiBound(const TableGrid& grid, absl::Span<const uint8_t> codes, const Factor* factor);
double BabaiBound(const IntegerGrid& grid, const Factor* factor);

// 1/2 log2(arithmetic / geometric mean of L_pp^2): the bits a weight lost by equal steps against
// steps proportional to 1/L_pp.
double RateGapBits(const Factor& factor);

// Empirical entropy of the codes, in bits a code.
double EntropyBits(absl::Span<const uint8_t> codes);
double EntropyBits(absl::Span<const int32_t> codes);
// From how often each code is there.
double EntropyOfCounts(absl::Span<const int64_t> counts);

// Everything but bits_per_weight, which only what is stored tells. UniformGrid, TableGrid,
// IntegerGrid.
template <typename Grid>
Certificate MakeCertificate(const Solution<CodeOf<Grid>>& solution, const Grid& grid,
                            const Factor* factor);

}  // namespace babai
