// What every fit of a grid reads.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/quant/tile_loop.h"

namespace babai {

struct FitInput {
  absl::Span<const float> w;  // [rows, cols]
  int64_t rows = 0, cols = 0;
  std::vector<float> importance;               // [cols]
  const std::vector<uint8_t>* kept = nullptr;  // [rows * cols], 1 = does not count; or null

  // Weights and what their squared errors count, [cols, lanes]; both are 0 where a weight does not.
  void LoadLanes(TileRows rows, int64_t lanes, float* weights, float* counts) const;
};

// Costs as they weigh in fp32 sums: only ratios matter, so their mean becomes 1. All 1 if `costs`
// is empty or sums to nothing.
std::vector<float> MeanOne(absl::Span<const double> costs, int64_t cols);

// InvalidArgument UNSUPPORTED_FORMAT.
absl::Status WeightsTooLarge();

}  // namespace babai
