// The execution layout of F1 weights (formats/packed_int.h) on a GPU: tensor-core fragment order.
//
//   tile     16 rows x 128 columns: two halves of 64 columns, then `groups` rows of scales, then
//   zeros half     32 lanes x `bits` 32-bit words; lane l = 4 g + t holds, for each of four steps
//   of 16
//            columns, the eight weights that it feeds to mma.m16n8k16 as operand A:
//            rows g and g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9.  Words lie in planes of 16, 8 or
//            4 bytes a lane (2 bits: 8; 3: 8 + 4; 4: 16; 8: 16 + 16), so that loads do not conflict
//   word     columns 2t and 2t + 1 (or 2t + 8 and 2t + 9) of one row form a pair at bit b of both
//            16-bit halves, where PairPlace() says which word and b. Masked in place, a pair is
//            two small integers, times 2^b, that need no further arithmetic (see dequant.cuh)
//   scales   16 fp16 a group in row order 0 8 1 9 2 10 ... (a lane's two rows are neighbours)
//   zeros    16 bytes a group, same order; absent when symmetric
//   record   two tiles, of rows 0..15 and 16..31 of a strip, at the same columns
//   strip    the records of 32 rows along k, one after another: a contiguous range of bytes, so
//   that
//            any stretch of k of a strip is one copy
//   matrix   ceil(n / 32) strips; then, when one group spans a row, 16 fp16 scales for each tile of
//            rows and (asymmetric) after all scales 16 zeros each, and none in the tiles
//   padding  rows and columns past the matrix have code 0 and scale 0
//   cost     bits + (16 + (asymmetric ? 8 : 0)) / group bits a weight
//
// One layout serves every m: mma.sync and wgmma take the same fragments. It is made at load from
// F1 and never stored.
#pragma once

#include <cstdint>

namespace babai::cuda {

constexpr int kTileRows = 16;
constexpr int kTileCols = 128;
constexpr int kStripTiles = 2;
constexpr int kStripRows = kStripTiles * kTileRows;
constexpr int kHalfCols = 64;
constexpr int kStepCols = 16;
constexpr int kStepsPerHalf = 4;
constexpr int kLanes = 32;

enum class Dtype : int { kFp16 = 0, kBf16 = 1 };

// A fp16 number is smaller than two to this.
constexpr int kAnyExponent = 16;

struct PackedShape {
  int n = 0;      // output features
  int k = 0;      // input features, a multiple of 32
  int bits = 0;   // 2, 3, 4, 8
  int group = 0;  // 32, 64, 128; 0: one group a row
  bool asymmetric = false;
  // Every scale's magnitude is below 2^this; known, products of many tokens are faster.
  int scale_exponent = kAnyExponent;

  constexpr int strips() const { return (n + kStripRows - 1) / kStripRows; }
  constexpr int k_tiles() const { return (k + kTileCols - 1) / kTileCols; }
  constexpr int groups_per_tile() const { return group == 0 ? 0 : kTileCols / group; }
  constexpr int code_bytes() const { return kTileRows * kTileCols * bits / 8; }
  constexpr int tile_bytes() const {
    return code_bytes() + groups_per_tile() * kTileRows * (asymmetric ? 3 : 2);
  }
  constexpr int record_bytes() const { return kStripTiles * tile_bytes(); }
  constexpr int64_t strip_bytes() const { return int64_t{1} * k_tiles() * record_bytes(); }
  constexpr int64_t row_meta_offset() const { return strips() * strip_bytes(); }
  constexpr int64_t row_meta_bytes() const {
    return group == 0 ? int64_t{strips()} * kStripRows * (asymmetric ? 3 : 2) : 0;
  }
  constexpr int64_t bytes() const { return row_meta_offset() + row_meta_bytes(); }
};

// Where a pair of weights lies in a lane's `bits` words of one half tile.
//   step  0..3, the 16-column step; row8: row g + 8 instead of g; col8: columns 2t + 8, 2t + 9
struct PairPlace {
  int word;
  int bit;         // of the low 16-bit half; the second weight of the pair sits 16 bits higher
  bool scattered;  // 3 bits only: bit i of the pair is bit 15 (and 31) of word i
};

constexpr PairPlace PlaceOfPair(int bits, int step, bool row8, bool col8) {
  switch (bits) {
    case 8:  // a word holds one pair of each row: even bytes row g, odd bytes row g + 8
      return {2 * step + col8, row8 ? 8 : 0, false};
    case 4:
      return {step, (col8 ? 8 : 0) + (row8 ? 4 : 0), false};
    case 2:
      return {step / 2, (step % 2) * 8 + (col8 ? 4 : 0) + (row8 ? 2 : 0), false};
    default:  // 3 bits: five pairs a word at bits 0 3 6 9 12, the sixteenth pair from the top bits
      if (step < 3) return {step, (col8 ? 6 : 0) + (row8 ? 3 : 0), false};
      if (!row8) return {col8 ? 1 : 0, 12, false};
      return {col8 ? 0 : 2, 12, col8};
  }
}

// Byte of word `word` of lane `lane` within a half tile: planes of at most 16 bytes a lane.
constexpr int WordOffset(int bits, int lane, int word) {
  if (bits == 8) return (word / 4) * 512 + lane * 16 + (word % 4) * 4;
  if (bits == 3) return word < 2 ? lane * 8 + word * 4 : 256 + lane * 4;
  return lane * bits * 4 + word * 4;
}

}  // namespace babai::cuda
