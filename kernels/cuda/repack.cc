#include "kernels/cuda/repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "kernels/formats/float16.h"

namespace babai::cuda {
namespace {

// Row r of a tile sits at this place of its scales and zeros: 0 8 1 9 2 10 ...
int MetaSlot(int row) { return row < 8 ? 2 * row : 2 * (row - 8) + 1; }

void PutPair(uint32_t* words, const PairPlace& place, int bits, uint32_t first, uint32_t second) {
  const uint32_t pair = first | second << 16;
  if (!place.scattered) {
    words[place.word] |= pair << place.bit;
    return;
  }
  for (int i = 0; i < bits; ++i) words[i] |= ((pair >> i) & 0x00010001u) << 15;
}

// The codes of one lane in one half tile. Rows and columns past the matrix are zero.
void LaneWords(const PackedIntView& w, int64_t row0, int64_t col0, int lane, uint32_t* words) {
  const auto code = [&](int64_t r, int64_t c) -> uint32_t {
    return r < w.rows && c < w.cols ? CodeAt(w, r, c) : 0;
  };
  const int g = lane / 4, t = lane % 4;
  for (int step = 0; step < kStepsPerHalf; ++step) {
    for (const bool row8 : {false, true}) {
      for (const bool col8 : {false, true}) {
        const int64_t r = row0 + g + (row8 ? 8 : 0);
        const int64_t c = col0 + step * kStepCols + 2 * t + (col8 ? 8 : 0);
        PutPair(words, PlaceOfPair(w.bits, step, row8, col8), w.bits, code(r, c), code(r, c + 1));
      }
    }
  }
}

void PackCodes(const PackedIntView& w, int64_t row0, int64_t col0, uint8_t* tile) {
  for (int half = 0; half < 2; ++half) {
    uint8_t* out = tile + half * kTileRows * kHalfCols * w.bits / 8;
    for (int lane = 0; lane < kLanes; ++lane) {
      uint32_t words[8] = {};
      LaneWords(w, row0, col0 + half * kHalfCols, lane, words);
      for (int i = 0; i < w.bits; ++i) {
        std::memcpy(out + WordOffset(w.bits, lane, i), &words[i], sizeof(words[i]));
      }
    }
  }
}

// Scales, then zeros, of `groups` groups of one strip from group `group0` on.
void PackMeta(const PackedIntView& w, int64_t row0, int64_t group0, int groups, uint8_t* scales,
              uint8_t* zeros) {
  for (int i = 0; i < groups; ++i) {
    for (int row = 0; row < kTileRows; ++row) {
      const int64_t r = row0 + row, g = group0 + i;
      if (r >= w.rows || g >= w.groups()) continue;
      const int slot = i * kTileRows + MetaSlot(row);
      std::memcpy(scales + 2 * slot, &w.scales[r * w.groups() + g], 2);
      if (!w.symmetric()) zeros[slot] = static_cast<uint8_t>(ZeroAt(w, r, g));
    }
  }
}

}  // namespace

absl::StatusOr<PackedShape> GpuShape(const PackedIntView& w) {
  const bool whole_row = w.group >= w.cols;
  if (!whole_row && w.group != 32 && w.group != 64 && w.group != 128) {
    return absl::InvalidArgumentError("the group must be 32, 64, 128 or a whole row");
  }
  if (w.cols % 32 != 0) return absl::InvalidArgumentError("cols must be a multiple of 32");
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max() / 2;
  if (w.rows > kMax || w.cols > kMax) return absl::InvalidArgumentError("the matrix is too large");
  return PackedShape{static_cast<int>(w.rows), static_cast<int>(w.cols), w.bits,
                     whole_row ? 0 : static_cast<int>(w.group), !w.symmetric()};
}

int ScaleExponent(absl::Span<const uint16_t> scales) {
  constexpr uint16_t kMagnitude = 0x7fff, kLeast = 0x0001, kMost = 0x7bff;  // ordered as their bits
  uint16_t largest = kLeast;
  for (const uint16_t scale : scales) largest = std::max<uint16_t>(largest, scale & kMagnitude);
  return std::ilogb(HalfToFloat(std::min(largest, kMost))) + 1;
}

absl::StatusOr<std::vector<uint8_t>> RepackForGpu(const PackedIntView& w) {
  absl::StatusOr<PackedShape> made = GpuShape(w);
  if (!made.ok()) return made.status();
  const PackedShape& s = *made;
  std::vector<uint8_t> out(s.bytes());
  const int groups = s.groups_per_tile();
  for (int64_t row_tile = 0; row_tile < s.strips() * kStripTiles; ++row_tile) {
    const int64_t row0 = row_tile * kTileRows, strip = row_tile / kStripTiles;
    for (int64_t kt = 0; kt < s.k_tiles(); ++kt) {
      uint8_t* tile = out.data() + strip * s.strip_bytes() + kt * s.record_bytes() +
                      row_tile % kStripTiles * s.tile_bytes();
      PackCodes(w, row0, kt * kTileCols, tile);
      uint8_t* meta = tile + s.code_bytes();
      PackMeta(w, row0, kt * groups, groups, meta, meta + groups * kTileRows * 2);
    }
    if (s.group == 0) {
      uint8_t* scales = out.data() + s.row_meta_offset();
      uint8_t* zeros = scales + int64_t{s.strips()} * kStripRows * 2;
      PackMeta(w, row0, 0, 1, scales + row0 * 2, zeros + row0);
    }
  }
  return out;
}

}  // namespace babai::cuda
