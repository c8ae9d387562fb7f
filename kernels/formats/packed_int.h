// Format F1: integer codes with one scale, and one zero point where asked, for each group of
// inputs.
//
//   meaning  w(r, c) = scale(r, c / group) * (code(r, c) - zero(r, c / group)),  code in
//   0..2^bits-1
//            symmetric: zero = 2^(bits-1) everywhere, and `zeros` is empty
//   codes    [rows, row_bytes], row-major; a row is one dense little-endian bit stream along cols:
//            code c occupies bits c*bits .. c*bits+bits-1, the lowest bit first;
//            row_bytes = ceil(cols * bits / 32) * 4, unused tail bits are 0
//   scales   [rows, groups] fp16 bit patterns, row-major, groups = ceil(cols / group)
//   zeros    [rows, zero_row_bytes], each row a dense little-endian bit stream of `groups` values
//   of
//            `bits` bits, zero_row_bytes = ceil(groups * bits / 8); empty when symmetric
//   cost     bits + (16 + (asymmetric ? bits : 0)) / group bits a weight, up to row padding
//   limits   bits in {2, 3, 4, 8}; group >= 1, the last group may be short only if group == cols
//            rounds it up, i.e. group divides cols or group >= cols (one group a row)
//   source   GPTQ, Frantar et al. 2022, arXiv:2210.17323. The code words are those of GPTQ's
//            `qweight` (transposed) and of compressed-tensors' `weight_packed`.
//
// This is also the on-disk layout (docs/formats.md). To change it, add a layout; never edit this
// one.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace babai {

// Owns nothing: the buffers must outlive every copy. Read-only: any number of threads may use it.
struct PackedIntView {
  absl::Span<const uint8_t> codes;
  absl::Span<const uint16_t> scales;
  absl::Span<const uint8_t> zeros;  // empty: symmetric
  int64_t rows = 0;                 // output features
  int64_t cols = 0;                 // input features
  int64_t group = 0;                // weights along cols that share a scale
  int bits = 0;

  bool symmetric() const { return zeros.empty(); }
  int64_t groups() const { return (cols + group - 1) / group; }
};

// Bytes that each buffer must have. Checked arithmetic; -1 if the shape is outside the limits.
int64_t PackedIntCodeBytes(int64_t rows, int64_t cols, int bits);
int64_t PackedIntZeroBytes(int64_t rows, int64_t cols, int64_t group, int bits);

// Checks everything once, so that no kernel has to. A group longer than a row becomes the row.
// InvalidArgument, naming the rule: a size outside the limits above, or a buffer of another length.
absl::StatusOr<PackedIntView> MakePackedIntView(absl::Span<const uint8_t> codes,
                                                absl::Span<const uint16_t> scales,
                                                absl::Span<const uint8_t> zeros, int64_t rows,
                                                int64_t cols, int64_t group, int bits);

// An owned F1 matrix.
struct PackedInt {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint8_t> zeros;
  int64_t rows = 0, cols = 0, group = 0;
  int bits = 0;

  PackedIntView view() const { return {codes, scales, zeros, rows, cols, group, bits}; }
};

// Packs codes [rows, cols] (one a byte), scales [rows, groups] (fp16 bits) and zeros [rows, groups]
// (one a byte; empty when symmetric). InvalidArgument: sizes disagree, or a code or zero is >=
// 2^bits.
absl::StatusOr<PackedInt> PackInt(absl::Span<const uint8_t> codes,
                                  absl::Span<const uint16_t> scales,
                                  absl::Span<const uint8_t> zeros, int64_t rows, int64_t cols,
                                  int64_t group, int bits);

// The slow definition that every kernel is tested against. Requires row, col in range.
uint32_t CodeAt(const PackedIntView& w, int64_t row, int64_t col);
uint32_t ZeroAt(const PackedIntView& w, int64_t row, int64_t group_index);
float DecodeWeight(const PackedIntView& w, int64_t row, int64_t col);

// All codes of a row, one a byte, into out [cols]: for repacking at memory speed.
void UnpackRow(const PackedIntView& w, int64_t row, uint8_t* out);

// Decodes rows [row_begin, row_end) into out [row_end - row_begin, cols], fp32. Fast enough for the
// reference forward pass; equals DecodeWeight exactly.
void DecodeRows(const PackedIntView& w, int64_t row_begin, int64_t row_end, float* out);

}  // namespace babai
