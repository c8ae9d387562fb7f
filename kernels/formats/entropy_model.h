// The model of format F6 as counts, code lengths and bytes. Internal to kernels/formats.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/formats/entropy_coded.h"

namespace babai::entropy {

inline constexpr int kFrequencyBits = 12;
inline constexpr int kTotal = 1 << kFrequencyBits;
inline constexpr int kEscapeSymbol = kEntropySymbols - 1;
inline constexpr int kEscapeBits = 16;  // magnitude beyond kEntropyEscape, and the sign

inline int SymbolOf(int32_t y) {
  const uint32_t symbol = static_cast<uint32_t>(y) + (kEntropyEscape - 1);
  return symbol < kEscapeSymbol ? static_cast<int>(symbol) : kEscapeSymbol;
}

using Counts = std::array<uint32_t, kEntropySymbols>;
using Frequencies = std::array<uint16_t, kEntropySymbols>;

// How often each symbol occurs in each context of `model`, whose frequencies are not read, in every
// `row_step`-th row of z.
std::vector<Counts> CountSymbols(const EntropyModel& model, absl::Span<const int32_t> z,
                                 int64_t rows, int64_t cols, int64_t row_step);

// -log2(frequency / 4096); 13 for a frequency of 0.
float FrequencyBits(int frequency);

// Frequencies that sum to 4096, > 0 where a count is, and are best for the counts (which are not
// all 0).
Frequencies Normalize(const Counts& counts);

// The bytes of the model, as docs/formats.md has them, and back. InvalidArgument names what is
// wrong; rows and cols are trusted.
std::vector<uint8_t> Serialize(const EntropyModel& model);
absl::StatusOr<EntropyModel> Parse(absl::Span<const uint8_t> bytes, int64_t rows, int64_t cols);

}  // namespace babai::entropy
