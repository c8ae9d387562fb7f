#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/repack_on_device.h"

namespace babai::cuda {
namespace {

constexpr int kMostBits = 8;

// Row r of a tile sits at this place of its scales and zeros: 0 8 1 9 2 10 ...
__device__ int MetaSlot(int row) { return row < 8 ? 2 * row : 2 * (row - 8) + 1; }

// What PackedShape says, for the device.
struct Params {
  RepackArgs a;
  int tile_bytes, code_bytes, groups_per_tile;
  int64_t record_bytes, strip_bytes, row_scales, row_zeros;
};

struct Source {
  const RepackArgs& a;

  // `bits` (at most 8) bits from bit `at` of a row of 32-bit words.
  static __device__ uint32_t BitsAt(const uint8_t* row, int at, int bits) {
    const int byte = at / 8, shift = at % 8;
    uint32_t word = row[byte];
    if (shift + bits > 8) word |= uint32_t{row[byte + 1]} << 8;
    return word >> shift & ((1u << bits) - 1);
  }
  // Rows and columns past the matrix have code 0. `row` counts from first_row.
  __device__ uint32_t Code(int row, int col) const {
    const PackedShape& s = a.shape;
    if (row >= a.rows || col >= s.k) return 0;
    const int64_t row_bytes = (int64_t{s.k} * s.bits + 31) / 32 * 4;
    return BitsAt(a.codes + row * row_bytes, col * s.bits, s.bits);
  }
  __device__ int Groups() const { return a.shape.group == 0 ? 1 : a.shape.k / a.shape.group; }
  __device__ uint16_t Scale(int row, int group) const {
    if (row >= a.rows || group >= Groups()) return 0;
    return a.scales[int64_t{row} * Groups() + group];
  }
  __device__ uint8_t Zero(int row, int group) const {
    if (row >= a.rows || group >= Groups()) return 0;
    const int64_t row_bytes = (int64_t{Groups()} * a.shape.bits + 7) / 8;
    return BitsAt(a.zeros + row * row_bytes, group * a.shape.bits, a.shape.bits);
  }
};

__device__ void PutPair(uint32_t (&words)[kMostBits], const PairPlace& place, int bits,
                        uint32_t pair) {
#pragma unroll
  for (int i = 0; i < kMostBits; ++i) {
    if (!place.scattered && i == place.word) words[i] |= pair << place.bit;
    if (place.scattered && i < bits) words[i] |= (pair >> i & 0x00010001u) << 15;
  }
}

// A warp's lanes and the words they get: see RepackForGpu() in repack.cc, the definition.
__device__ void PackHalf(const Source& source, int row0, int col0, int lane, uint8_t* out) {
  const int bits = source.a.shape.bits, g = lane / 4, t = lane % 4;
  uint32_t words[kMostBits] = {};
  for (int step = 0; step < kStepsPerHalf; ++step) {
    for (int place = 0; place < 4; ++place) {
      const bool row8 = place & 1, col8 = place & 2;
      const int r = row0 + g + (row8 ? 8 : 0);
      const int c = col0 + step * kStepCols + 2 * t + (col8 ? 8 : 0);
      PutPair(words, PlaceOfPair(bits, step, row8, col8), bits,
              source.Code(r, c) | source.Code(r, c + 1) << 16);
    }
  }
#pragma unroll
  for (int i = 0; i < kMostBits; ++i) {
    if (i < bits) *reinterpret_cast<uint32_t*>(out + WordOffset(bits, lane, i)) = words[i];
  }
}

__device__ void PackMeta(const Source& source, int row0, int group0, int groups, int lane,
                         uint8_t* scales, uint8_t* zeros) {
  for (int i = lane; i < groups * kTileRows; i += kWarp) {
    const int group = i / kTileRows, row = i % kTileRows;
    const int slot = group * kTileRows + MetaSlot(row);
    reinterpret_cast<uint16_t*>(scales)[slot] = source.Scale(row0 + row, group0 + group);
    if (source.a.shape.asymmetric) zeros[slot] = source.Zero(row0 + row, group0 + group);
  }
}

// A warp a tile: grid (k tiles, row tiles).
__global__ void RepackKernel(Params p) {
  const RepackArgs& a = p.a;
  const Source source{a};
  const int lane = threadIdx.x, kt = blockIdx.x;
  const int row0 = blockIdx.y * kTileRows;                        // of these rows
  const int64_t row_tile = a.first_row / kTileRows + blockIdx.y;  // of the matrix
  uint8_t* tile = a.out + row_tile / kStripTiles * p.strip_bytes + kt * p.record_bytes +
                  row_tile % kStripTiles * p.tile_bytes;
  for (int half = 0; half < 2; ++half) {
    PackHalf(source, row0, kt * kTileCols + half * kHalfCols, lane,
             tile + half * kTileRows * kHalfCols * a.shape.bits / 8);
  }
  const int groups = p.groups_per_tile;
  uint8_t* meta = tile + p.code_bytes;
  PackMeta(source, row0, kt * groups, groups, lane, meta, meta + groups * kTileRows * 2);
  if (a.shape.group == 0 && kt == 0) {
    PackMeta(source, row0, 0, 1, lane, a.out + p.row_scales + row_tile * kTileRows * 2,
             a.out + p.row_zeros + row_tile * kTileRows);
  }
}

}  // namespace

cudaError_t RepackOnDevice(const RepackArgs& args, const Queue& queue) {
  const PackedShape& s = args.shape;
  const int strips = (args.rows + kStripRows - 1) / kStripRows;
  Params p{args, s.tile_bytes(), s.code_bytes(), s.groups_per_tile()};
  p.record_bytes = s.record_bytes(), p.strip_bytes = s.strip_bytes();
  p.row_scales = s.row_meta_offset();
  p.row_zeros = p.row_scales + int64_t{s.strips()} * kStripRows * 2;
  const LaunchConfig config(dim3(s.k_tiles(), strips * kStripTiles), kWarp, 0, queue.stream, false);
  return cudaLaunchKernelEx(config.get(), RepackKernel, p);
}

}  // namespace babai::cuda
