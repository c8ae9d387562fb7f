#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/table_gemm.h"

namespace babai::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kPairs = kTableValues * kTableValues;            // of a row's values
constexpr int kHalfWords = 8;                                  // of a lane: 64 pairs of two rows
constexpr int kHalfBytes = kTileRows * kHalfCols;              // a pair is a byte
constexpr int kUnitCols = kTableUnit, kEight = kUnitCols / 4;  // of two words: all and a lane's

// What PackedShape says, for the device.
struct Layout {
  const uint8_t* codes;
  const uint16_t* tables;
  int n, k;  // k: columns of W
  int k_tiles, tile_bytes, record_bytes;
  int64_t strip_bytes, row_scales;

  explicit Layout(const TableWeights& w)
      : codes(w.codes),
        tables(w.tables),
        n(w.shape.n),
        k(w.shape.k * 2),
        k_tiles(w.shape.k_tiles()),
        tile_bytes(w.shape.tile_bytes()),
        record_bytes(w.shape.record_bytes()),
        strip_bytes(w.shape.strip_bytes()),
        row_scales(w.shape.row_meta_offset()) {}
};

// What a lane has of half a tile: its codes, and the scales of its rows g and g + 8 side by side.
template <int kGroup>
struct LaneHalf {
  static constexpr int kGroups = kGroup == 0 ? 0 : kHalfCols / kGroup;
  uint4 words[kHalfWords / 4];
  __half2 scales[kGroups == 0 ? 1 : kGroups];

  __device__ __forceinline__ void Load(const Layout& p, const uint8_t* tile0, int half, int lane) {
    const uint8_t* tile = tile0 + int64_t{half / 2} * p.record_bytes;
    const uint8_t* codes = tile + half % 2 * kHalfBytes;
#pragma unroll
    for (int w = 0; w < kHalfWords / 4; ++w)
      words[w] = __ldg(reinterpret_cast<const uint4*>(codes) + w * kLanes + lane);
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const uint8_t* scale = tile + 2 * kHalfBytes + (half % 2 * kGroups + j) * kTileRows * 2;
      scales[j] = __ldg(reinterpret_cast<const __half2*>(scale) + lane / 4);
    }
  }
  __device__ __forceinline__ uint32_t Word(int word) const {
    const uint4& four = words[word / 4];
    const uint32_t all[4] = {four.x, four.y, four.z, four.w};
    return all[word % 4];
  }
};

template <typename T>
__device__ __forceinline__ uint32_t PairBits(uint16_t low, uint16_t high) {
  if constexpr (__is_same(T, __half)) {
    return low | uint32_t{high} << 16;
  } else {
    const float l = __half2float(__ushort_as_half(low)), h = __half2float(__ushort_as_half(high));
    return __bfloat16_as_ushort(__float2bfloat16_rn(l)) |
           uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(h))} << 16;
  }
}

// The pairs of values that a tile's rows have, a code's low half being the first of the pair. Each
// lane has a bank of its own, or lookups, which are as good as random, would queue for one.
template <int kEights>
struct alignas(16) TableShared {
  uint32_t pairs[2][kPairs][kLanes];  // of rows g and of rows g + 8
  float4 sums[kWarps][kEights][kLanes];
};

template <typename T>
__device__ __forceinline__ void MakePairs(const Layout& p, int row0, int warp, int lane,
                                          uint32_t (&pairs)[2][kPairs][kLanes]) {
  constexpr int kRowLanes = 4, kAtOnce = kLanes / 8 * kWarps;  // codes
  const int g = lane % 8, code0 = warp * (kLanes / 8) + lane / 8;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint16_t* table = p.tables + int64_t{min(row0 + g + r * 8, p.n - 1)} * kTableValues;
    uint16_t low[kPairs / kAtOnce], high[kPairs / kAtOnce];
#pragma unroll
    for (int i = 0; i < kPairs / kAtOnce; ++i) {
      const int code = code0 + i * kAtOnce;
      low[i] = __ldg(table + code % kTableValues), high[i] = __ldg(table + code / kTableValues);
    }
#pragma unroll
    for (int i = 0; i < kPairs / kAtOnce; ++i) {
      const uint32_t pair = PairBits<T>(low[i], high[i]);
      *reinterpret_cast<uint4*>(&pairs[r][code0 + i * kAtOnce][g * kRowLanes]) =
          make_uint4(pair, pair, pair, pair);
    }
  }
}

struct Params {
  Layout w;
  const void* x;
  void* y;
  int m;
};

// A block has a tile of 16 rows; its warps share out k.
template <typename T, int kGroup, int kEights>
__global__ void __launch_bounds__(kThreads, kEights == 1 ? 3 : 2)
    TableGemmKernel(const __grid_constant__ Params p) {
  SHARED_MEMORY(smem);
  TableShared<kEights>& shared = *reinterpret_cast<TableShared<kEights>*>(smem);
  LetNextKernelStart();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int row_tile = blockIdx.x, row0 = row_tile * kTileRows;
  const int halves = 2 * p.w.k_tiles;
  const int begin = warp * halves / kWarps, end = (warp + 1) * halves / kWarps;
  const uint8_t* const codes = p.w.codes + row_tile / kStripTiles * p.w.strip_bytes +
                               row_tile % kStripTiles * p.w.tile_bytes;
  LaneHalf<kGroup> next;
  if (begin < end) next.Load(p.w, codes, begin, lane);
  MakePairs<T>(p.w, row0, warp, lane, shared.pairs);
  __syncthreads();
  WaitForPrecedingKernel();

  const uint8_t* const pairs = reinterpret_cast<const uint8_t*>(&shared.pairs[0][0][lane]);
  const auto look_up = [&](int row8, uint32_t place) {  // the code in bits 7 to 14
    constexpr uint32_t kPlaces = (kPairs - 1) * kLanes * 4, kRows = kPairs * kLanes * 4;
    return *reinterpret_cast<const uint32_t*>(pairs + row8 * kRows + (place & kPlaces));
  };
  float total[kEights][4] = {};
#pragma unroll 1
  for (int half = begin; half < end; ++half) {
    uint4 x[kHalfWords / 2][kEights];
#pragma unroll
    for (int i = 0; i < kHalfWords / 2; ++i) {
      const int col = (half * kHalfWords / 2 + i) * kUnitCols + t * kEight;
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        const int token = e * 8 + g;
        const T* at = static_cast<const T*>(p.x) + int64_t{token} * p.w.k + col;
        x[i][e] = token < p.m && col < p.w.k ? *reinterpret_cast<const uint4*>(at) : uint4{};
      }
    }
    const LaneHalf<kGroup> now = next;
    if (half + 1 < end) next.Load(p.w, codes, half + 1, lane);
    float run[kEights][4];
#pragma unroll
    for (int w = 0; w < kHalfWords; ++w) {
      constexpr int kWords = kGroup == 0 ? kHalfWords : kGroup * 2 / kStepCols;  // of a group
      if (kGroup != 0 && w % kWords == 0) Clear(run);
      const uint32_t four = now.Word(w);
      const uint32_t a[4] = {look_up(0, four << 7), look_up(1, four >> 1), look_up(0, four >> 9),
                             look_up(1, four >> 17)};
      auto& sums = kGroup == 0 ? total : run;
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        const uint4& v = x[w / 2][e];
        Mma<T>(sums[e], a, w % 2 == 0 ? v.x : v.z, w % 2 == 0 ? v.y : v.w);
      }
      if (kGroup == 0 || (w + 1) % kWords != 0) continue;
      const float2 s = __half22float2(now.scales[w / kWords]);
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        total[e][0] = fmaf(s.x, run[e][0], total[e][0]);
        total[e][1] = fmaf(s.x, run[e][1], total[e][1]);
        total[e][2] = fmaf(s.y, run[e][2], total[e][2]);
        total[e][3] = fmaf(s.y, run[e][3], total[e][3]);
      }
    }
  }

  // The warps' sums meet, in their order.
#pragma unroll
  for (int e = 0; e < kEights; ++e)
    shared.sums[warp][e][lane] = make_float4(total[e][0], total[e][1], total[e][2], total[e][3]);
  __syncthreads();
  if (warp >= kEights) return;
  float sum[4] = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float4 v = shared.sums[w][warp][lane];
    sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
  }
  if (kGroup == 0) {
    const uint8_t* scales = p.w.codes + p.w.row_scales + int64_t{row_tile} * kTileRows * 2;
    const float2 s = __half22float2(__ldg(reinterpret_cast<const __half2*>(scales) + g));
    sum[0] *= s.x, sum[1] *= s.x, sum[2] *= s.y, sum[3] *= s.y;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int token = warp * 8 + 2 * t + j % 2, row = row0 + g + j / 2 * 8;
    if (token < p.m && row < p.w.n)
      static_cast<T*>(p.y)[int64_t{token} * p.w.n + row] = FromFloat<T>(sum[j]);
  }
}

template <typename T>
struct alignas(16) Eight {
  T v[kEight];
};

// A warp a tile: grid (k tiles / kWarps, row tiles). `group`: of pairs.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    TableDecodeKernel(Layout w, int group, int first_row, int rows, T* out) {
  SHARED_VARIABLE(values, float[kTileRows][kTableValues + 1]);  // + 1: rows in distinct banks
  StartStep();
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int kt = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const int row0 = blockIdx.y * kTileRows;  // of these rows
  static_assert(kThreads == kTileRows * kTableValues, "a value each");
  const int value_row = threadIdx.x / kTableValues, value = threadIdx.x % kTableValues;
  const int table_row = min(first_row + row0 + value_row, w.n - 1);
  values[value_row][value] =
      __half2float(__ushort_as_half(__ldg(w.tables + int64_t{table_row} * kTableValues + value)));
  __syncthreads();
  if (kt >= w.k_tiles) return;
  const int64_t row_tile = (first_row + row0) / kTileRows;
  const uint8_t* tile = w.codes + row_tile / kStripTiles * w.strip_bytes +
                        int64_t{kt} * w.record_bytes + row_tile % kStripTiles * w.tile_bytes;
  const uint8_t* const row_scales = w.codes + w.row_scales + row_tile * kTileRows * 2;
#pragma unroll 1
  for (int plane = 0; plane < kHalfWords / 2; ++plane) {  // four words a lane
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(tile) + plane * kLanes + lane);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int unit = plane * 2 + i / 2, col = (kt * kHalfWords + unit) * kUnitCols + t * kEight;
      const int of_tile = group == 0 ? 0 : unit * (kUnitCols / 2) / group;
      const uint8_t* scales = group == 0 ? row_scales : tile + 2 * kHalfBytes;
      const float2 scale = __half22float2(
          __ldg(reinterpret_cast<const __half2*>(scales + of_tile * kTileRows * 2) + g));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = g + r * 8;
        if (row0 + row >= rows || first_row + row0 + row >= w.n || col >= w.k) continue;
        Eight<T> decoded;
#pragma unroll
        for (int j = 0; j < kEight; ++j) {
          const uint32_t code = words[i + j / 4] >> (j / 2 % 2 * 16 + r * 8 + j % 2 * 4) & 15;
          decoded.v[j] = FromFloat<T>((r == 0 ? scale.x : scale.y) * values[row][code]);
        }
        *reinterpret_cast<Eight<T>*>(out + int64_t{row0 + row} * w.k + col) = decoded;
      }
    }
  }
}

template <typename T, int kGroup>
cudaError_t LaunchGroup(const TableGemmArgs& args, const Queue& queue) {
  const Params p{Layout(args.weights), args.x, args.y, args.m};
  const dim3 grid((args.weights.shape.n + kTileRows - 1) / kTileRows);
  return args.m <= 8 ? Launch(TableGemmKernel<T, kGroup, 1>, grid, kThreads, sizeof(TableShared<1>),
                              queue, p)
                     : Launch(TableGemmKernel<T, kGroup, 2>, grid, kThreads, sizeof(TableShared<2>),
                              queue, p);
}

template <typename T>
cudaError_t LaunchTyped(const TableGemmArgs& args, const Queue& queue) {
  switch (args.weights.shape.group) {
    case 0:
      return LaunchGroup<T, 0>(args, queue);
    case 16:
      return LaunchGroup<T, 16>(args, queue);
    case 32:
      return LaunchGroup<T, 32>(args, queue);
    case 64:
      return LaunchGroup<T, 64>(args, queue);
    default:
      return cudaErrorInvalidValue;
  }
}

bool Known(const PackedShape& s) { return s.bits == 8 && !s.asymmetric && s.k % 16 == 0; }

}  // namespace

cudaError_t TableGemm(const TableGemmArgs& args, const Queue& queue) {
  if (!Known(args.weights.shape) || args.m < 1 || args.m > kTableTokens) {
    return cudaErrorInvalidValue;
  }
  return args.dtype == Dtype::kFp16 ? LaunchTyped<__half>(args, queue)
                                    : LaunchTyped<__nv_bfloat16>(args, queue);
}

cudaError_t TableDecode(const TableDecodeArgs& args, const Queue& queue) {
  const PackedShape& s = args.weights.shape;
  if (!Known(s) || args.first_row % kStripRows != 0) return cudaErrorInvalidValue;
  const dim3 grid((s.k_tiles() + kWarps - 1) / kWarps, (args.rows + kTileRows - 1) / kTileRows);
  const Layout layout(args.weights);
  if (args.dtype == Dtype::kFp16) {
    return Launch(TableDecodeKernel<__half>, grid, kThreads, 0, queue, layout, s.group,
                  args.first_row, args.rows, static_cast<__half*>(args.out));
  }
  return Launch(TableDecodeKernel<__nv_bfloat16>, grid, kThreads, 0, queue, layout, s.group,
                args.first_row, args.rows, static_cast<__nv_bfloat16*>(args.out));
}

}  // namespace babai::cuda
