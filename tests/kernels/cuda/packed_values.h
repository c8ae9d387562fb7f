// Random packed weights for the tests of products.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/formats/packed_int.h"
#include "values.h"

namespace babai::cuda {

constexpr float kLargestScale = 0.02f;

// group >= k: one a row.
inline PackedInt RandomPacked(int64_t n, int64_t k, int64_t group, int bits, bool asymmetric,
                              std::mt19937& rng, float largest = kLargestScale) {
  std::vector<uint8_t> codes(n * k), zeros;
  const int64_t groups = (k + group - 1) / group;
  std::vector<uint16_t> scales(n * groups);
  if (asymmetric) zeros.resize(n * groups);
  std::uniform_int_distribution<int> code(0, (1 << bits) - 1);
  std::uniform_real_distribution<float> scale(largest / 20, largest);
  for (uint8_t& v : codes) v = code(rng);
  for (uint8_t& v : zeros) v = code(rng);
  for (uint16_t& v : scales) v = Encode(scale(rng), Dtype::kFp16);
  absl::StatusOr<PackedInt> packed = PackInt(codes, scales, zeros, n, k, group, bits);
  EXPECT_TRUE(packed.ok()) << packed.status();
  return *packed;
}

}  // namespace babai::cuda
