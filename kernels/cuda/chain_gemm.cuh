// The kernel of chain_gemm.h.
#pragma once

#include "kernels/cuda/chain_gemm.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/partial_sums.cuh"
#include "kernels/cuda/record_mma.cuh"
#include "kernels/cuda/store_sums.cuh"

namespace babai::cuda {

enum ChainStep : int { kStepO, kStepGateUp, kStepDown, kStepQkv, kChainSteps };

constexpr int kChainPass = 4;       // strips that a warp takes side by side
constexpr int kChainMostSlots = 8;  // of a ring

// x between two products, as operand B wants it: for a k tile four planes of 32 columns, in each
// 16 bytes a lane. Lane 4 * token + t has columns 2t and 2t + 1 of every eight of the plane.
constexpr int kXPlaneCols = 32, kXPlaneBytes = kLanes * 16;
constexpr int kXTileBytes = kTileCols / kXPlaneCols * kXPlaneBytes;
constexpr int kXWords = kXTileBytes / 4 / kLanes;  // of a lane

// Of columns col and col + 1, col even.
__device__ __forceinline__ int XWordOffset(int token, int col) {
  const int eight = col % kXPlaneCols / 8;
  return col / kXPlaneCols * kXPlaneBytes + (token * 4 + col % 8 / 2) * 16 + eight * 4;
}

struct ChainStepParams {
  const uint8_t* weights;
  int n, k;
  Shares strips;   // of a block
  Shares k_tiles;  // of a warp
  int64_t strip_bytes, row_scales, row_zeros;
};

struct ChainGemmParams {
  ChainStepParams steps[kChainSteps];
  int count;  // of steps
  int m, hidden;
  float hidden_inverse;
  const void* attention;
  float* x;
  void* qkv;
  const float *mlp_norm, *next_norm;
  float eps;
  GateFunction gate;
  uint8_t* handed[kChainSteps - 1];  // what o, gate-up and down hand on, in fragment order
  float* squares[kChainSteps - 1];   // of x as o and as down leave it: [hidden / 16][8 tokens]
  float* squares_before;             // as the launch before left it
  uint4* clear;                      // all that the launch before has handed on
  int clear_count;
  uint32_t exponent;  // of bf16 fragments: dequant.cuh says why it is not a constant
  int slots, ahead;
  int mail;         // in shared memory, behind the rings: the warps' sums
  int square_sums;  // behind these: of x, [warps][8 tokens]
};

// Gives up on a word that never comes.
struct Patience {
  int left = 1 << 22;
  __device__ __forceinline__ void Spend() {
    if (--left == 0) __trap();
  }
};

// A warp's ring: the records of its strips and k tiles in the order in which they are worked on,
// through all products. All lanes call its functions together.
template <int kRecord>
class ChainRing {
 public:
  __device__ __forceinline__ ChainRing(const ChainGemmParams& params, uint8_t* smem, int w, int l)
      : p(params), warp(w), lane(l), begin_(smem + w * p.slots * kRecord), out_(begin_) {
    in_ = SharedAddress(begin_);
    EnterStep();
  }

  // Copies a record more if there is room for one beside that being worked on.
  __device__ __forceinline__ void Refill() {
    if (pass_over_ || depth_ == p.slots - 1) return;
    constexpr int kRound = kLanes * 16, kRest = kRecord % kRound, kWhole = kRecord - kRest;
    const uint32_t to = in_ + lane * 16;
#pragma unroll
    for (int b = 0; b < kWhole; b += kRound) CopyAsync16(to + b, from_ + b);
    if (kRest > 0) CopyAsync16If(to + kWhole, from_ + kWhole, lane * 16 < kRest);
    CopyAsyncCommit();
    ++depth_;
    in_ += kRecord;
    if (in_ == SharedAddress(begin_) + p.slots * kRecord) in_ = SharedAddress(begin_);
    ++strip_, from_ += strip_bytes_;
    if (strip_ < pass_end_) return;
    strip_ = pass_, from_ = tile_from_ += kRecord;
    pass_over_ = ++tile_ == tile_end_;
  }
  // To be called once a k tile at least: what comes once a pass is not in Refill(), whose code is
  // in many places.
  __device__ __forceinline__ void EnterNextPass() {
    if (!pass_over_ || step_ == p.count) return;
    pass_ = pass_end_;
    if (pass_ < strips_) return EnterPass(pass_from_ + kChainPass * strip_bytes_);
    ++step_;
    EnterStep();
  }
  // The oldest record, of which one is there or under way; the one taken before may be overwritten
  // from now on.
  __device__ __forceinline__ const uint8_t* Take() {
    --depth_;
    CopyAsyncWaitFor(depth_);
    __syncwarp();  // every lane's part of it is there, and what was read from the one before
    const uint8_t* const record = out_;
    out_ += kRecord;
    if (out_ == begin_ + p.slots * kRecord) out_ = begin_;
    return record;
  }

 private:
  // The first pass of the next step in which this warp has anything to do.
  __device__ __forceinline__ void EnterStep() {
    for (pass_over_ = true; step_ < p.count; ++step_) {
      const ChainStepParams& s = p.steps[step_];
      tile_begin_ = s.k_tiles.Begin(warp), tile_end_ = s.k_tiles.Begin(warp + 1);
      const int strip0 = s.strips.Begin(blockIdx.x);
      strips_ = s.strips.Begin(blockIdx.x + 1) - strip0;
      if (strips_ == 0 || tile_begin_ == tile_end_) continue;
      strip_bytes_ = s.strip_bytes;
      pass_ = 0;
      return EnterPass(s.weights + strip0 * strip_bytes_);
    }
  }
  __device__ __forceinline__ void EnterPass(const uint8_t* first_strip) {
    pass_over_ = false;
    strip_ = pass_, pass_end_ = min(pass_ + kChainPass, strips_), tile_ = tile_begin_;
    pass_from_ = first_strip;
    from_ = tile_from_ = first_strip + tile_ * kRecord + lane * 16;
  }

  const ChainGemmParams& p;
  const int warp, lane;
  uint8_t* const begin_;
  const uint8_t* out_;  // the oldest record
  uint32_t in_;         // where the next one goes
  int depth_ = 0;       // records copied or under way, without that being worked on
  // The next record to copy.
  bool pass_over_;
  int step_ = 0, strips_, strip_, pass_, pass_end_, tile_, tile_begin_, tile_end_;
  int64_t strip_bytes_;
  const uint8_t *from_, *tile_from_, *pass_from_;
};

// This lane's words of a k tile of x.
struct ChainX {
  uint32_t words[kXWords];

  // Of rows of 16-bit values.
  __device__ __forceinline__ void LoadRows(const void* x, int k, int tile, int lane, int m) {
    const int token = lane / 4, col = tile * kTileCols + lane % 4 * 2;
    const auto* const row = static_cast<const uint16_t*>(x) + int64_t{token} * k + col;
#pragma unroll
    for (int w = 0; w < kXWords; ++w) {
      const bool valid = token < m && tile * kTileCols + w / 4 * kXPlaneCols < k;
      words[w] = valid ? LoadRelaxed(row + w * 8) : 0;
    }
  }
  // Of what a product has handed on; may not be there yet.
  __device__ __forceinline__ void LoadHanded(const uint8_t* x, int k, int tile, int lane, int m) {
#pragma unroll
    for (int plane = 0; plane < kXWords / 4; ++plane) {
      const int first = tile * (kTileCols / kXPlaneCols) + plane;
      const bool valid = lane / 4 < m && first * kXPlaneCols < k;
      const uint4 v =
          valid ? LoadRelaxed4(x + first * kXPlaneBytes + lane * 16) : make_uint4(0, 0, 0, 0);
      words[plane * 4] = v.x, words[plane * 4 + 1] = v.y;
      words[plane * 4 + 2] = v.z, words[plane * 4 + 3] = v.w;
    }
  }
  __device__ __forceinline__ bool Missing() const {
    bool missing = false;
#pragma unroll
    for (int w = 0; w < kXWords; ++w) missing |= words[w] == kUnwritten;
    return missing;
  }
};

// Sums of squares of x, 16 neighbours and a token each, which the block's warps share out: asked
// for when a step begins, added up at its end.
struct ChainSquares {
  static constexpr int kAtOnce = 8, kRound = kAtOnce * kChainWarps * kLanes;
  uint32_t words[kAtOnce];

  // Those from `first` on that this lane takes and that are not here yet.
  __device__ __forceinline__ void Load(const ChainGemmParams& p, const float* from, int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = first + i * kChainWarps * kLanes + threadIdx.x;
      const bool valid = index % 8 < p.m && index < p.hidden / 2;
      if (words[i] == kUnwritten) words[i] = valid ? LoadRelaxed(from + index) : 0;
    }
  }
  __device__ __forceinline__ void Ask(const ChainGemmParams& p, const float* from, int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) words[i] = kUnwritten;
    Load(p, from, first);
  }
  // The warp's sum for token threadIdx.x % 8.
  __device__ __forceinline__ float Sum(const ChainGemmParams& p, const float* from,
                                       Patience& patience) {
    float sum = 0;
#pragma unroll 1
    for (int first = 0;;) {
      bool missing = false;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) missing |= words[i] == kUnwritten;
      if (__any_sync(kAllLanes, missing)) {
        patience.Spend();
        Load(p, from, first);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) sum += __uint_as_float(words[i]);
      first += kRound;
      if (first >= p.hidden / 2) break;
      Ask(p, from, first);
    }
    sum += __shfl_xor_sync(kAllLanes, sum, 8);
    sum += __shfl_xor_sync(kAllLanes, sum, 16);
    return sum;
  }
};

// What a lane has of two tokens, 2t and 2t + 1.
struct TokenPair {
  float a, b;
};

// The mean square of x, with eps, of this lane's two tokens: from the warps' sums in shared memory,
// `sums` [warps][8].
__device__ __forceinline__ TokenPair MeanSquares(const ChainGemmParams& p, const float* sums,
                                                 int lane) {
  static_assert(kChainWarps % 4 == 0);
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kChainWarps; w += 4) sum += sums[(w + lane / 8) * 8 + lane % 8];
  sum += __shfl_xor_sync(kAllLanes, sum, 8);
  sum += __shfl_xor_sync(kAllLanes, sum, 16);
  const float mean = fmaf(sum, p.hidden_inverse, p.eps);
  return {__shfl_sync(kAllLanes, mean, lane % 4 * 2),
          __shfl_sync(kAllLanes, mean, lane % 4 * 2 + 1)};
}

template <typename T>
__device__ __forceinline__ uint32_t PairBits(float low, float high) {
  const T pair[2] = {FromFloat<T>(low), FromFloat<T>(high)};
  uint32_t bits;
  __builtin_memcpy(&bits, pair, 4);
  return bits;
}

// Hands on column `col` + lane / 4, `col` a multiple of 8, of tokens 2t and 2t + 1. All lanes call
// it together: neighbours make a word of two columns.
template <typename T>
__device__ __forceinline__ void HandOn(uint8_t* to, int m, int lane, int col, const TokenPair& v) {
  const bool odd = lane / 4 % 2 != 0;
  const float other = __shfl_xor_sync(kAllLanes, odd ? v.a : v.b, 4);
  const int token = lane % 4 * 2 + odd;
  const uint32_t bits = odd ? PairBits<T>(other, v.b) : PairBits<T>(v.a, other);
  if (token < m) StoreRelaxed(to + XWordOffset(token, col + lane / 8 * 2), bits);
}

// What the end of o and down needs of a tile of 16 rows, asked for beforehand: this lane's rows
// g and g + 8, tokens as its sums.
struct ChainResidual {
  float x[4] = {}, norm[2] = {};

  __device__ __forceinline__ void Load(const ChainGemmParams& p, int step, int row, int lane) {
    const float* const weights = step == kStepO ? p.mlp_norm : p.next_norm;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = lane % 4 * 2 + j % 2;
      if (token < p.m) x[j] = p.x[int64_t{token} * p.hidden + row + j / 2 * 8];
    }
    if (step + 1 < p.count) norm[0] = weights[row], norm[1] = weights[row + 8];
  }
  // x += sums, kept and, times the norm's weights and `scale`, handed on.
  template <typename T>
  __device__ __forceinline__ void Add(const ChainGemmParams& p, int step, int row, int lane,
                                      const float (&sum)[4], const TokenPair& scale) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] += sum[j];
    if (step + 1 < p.count) {
      uint8_t* const to = p.handed[step];
      const int col = row - lane / 4;
      HandOn<T>(to, p.m, lane, col, {x[0] * norm[0] * scale.a, x[1] * norm[0] * scale.b});
      HandOn<T>(to, p.m, lane, col + 8, {x[2] * norm[1] * scale.a, x[3] * norm[1] * scale.b});
      TokenPair squares{x[0] * x[0] + x[2] * x[2], x[1] * x[1] + x[3] * x[3]};
#pragma unroll
      for (int from = 4; from < kLanes; from *= 2) {
        squares.a += __shfl_xor_sync(kAllLanes, squares.a, from);
        squares.b += __shfl_xor_sync(kAllLanes, squares.b, from);
      }
      const int token = lane % 4 * 2, at = col / kTileRows * 8 + token;
      if (lane < 4 && token < p.m) {
        StoreRelaxed(p.squares[step] + at, __float_as_uint(squares.a));
        if (step == kStepDown) p.squares_before[at] = squares.a;
      }
      if (lane < 4 && token + 1 < p.m) {
        StoreRelaxed(p.squares[step] + at + 1, __float_as_uint(squares.b));
        if (step == kStepDown) p.squares_before[at + 1] = squares.b;
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = lane % 4 * 2 + j % 2;
      if (token < p.m) p.x[int64_t{token} * p.hidden + row + j / 2 * 8] = x[j];
    }
  }
};

template <int kBits, typename T, int kGroup, bool kAsymmetric>
__global__ void __launch_bounds__(kChainWarps* kLanes, 1)
    ChainGemmKernel(const __grid_constant__ ChainGemmParams p) {
  constexpr int kRecord = kRecordBytes<kBits, kGroup, kAsymmetric>;
  constexpr float kRoom = 64;  // see chain_gemm.h
  SHARED_MEMORY(smem);
  LetNextKernelStart();
  // Broadcast, so that the compiler knows a warp's own numbers to be the same in all its lanes.
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / kLanes, 0), lane = threadIdx.x % kLanes;
  ChainRing<kRecord> ring(p, smem, warp, lane);
  float4* const mail = reinterpret_cast<float4*>(smem + p.mail) + lane;
  float* const square_sums = reinterpret_cast<float*>(smem + p.square_sums);
  const SumWeights ones(kOnes<T>, kOnes<T>);
  // Weights are constant, so these need not wait for the preceding kernel. One at a time: all at
  // once would queue in front of that kernel's last stores, for which everything waits.
#pragma unroll 1
  for (int i = 0; i < p.ahead; ++i) {
    if (i > 0) CopyAsyncWait<0>();
    ring.EnterNextPass();
    ring.Refill();
  }
  WaitForPrecedingKernel();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.clear_count;
       i += gridDim.x * blockDim.x)
    p.clear[i] = make_uint4(kUnwritten, kUnwritten, kUnwritten, kUnwritten);

  Patience patience;
  TokenPair scale{}, unscale{};  // of what is handed on
#pragma unroll 1
  for (int step = 0; step < p.count; ++step) {
    const ChainStepParams& s = p.steps[step];
    const int strip0 = s.strips.Begin(blockIdx.x);
    const int strips = s.strips.Begin(blockIdx.x + 1) - strip0;
    const int begin = s.k_tiles.Begin(warp), end = strips == 0 ? begin : s.k_tiles.Begin(warp + 1);
    const bool adds = step == kStepO || step == kStepDown;
    const float* const squares_from = step == kStepO ? p.squares_before : p.squares[step - 1];
    const uint8_t* const handed = step == kStepO ? nullptr : p.handed[step - 1];
    TokenPair factor{1, 1};  // of the sums
                             // Once even without strips: each block needs the norms.
#pragma unroll 1
    for (int first = 0; first == 0 || first < strips; first += kChainPass) {
      const int count = min(kChainPass, strips - first);
      const int row_tile = (strip0 + first) * kStripTiles + warp;  // what this warp will finish
      const bool finishes = warp < count * kStripTiles;
      ChainResidual residual;
      if (adds && finishes) residual.Load(p, step, row_tile * kTileRows + lane / 4, lane);
      ChainSquares squares;
      const bool norms = step != kStepDown && first == 0;
      if (norms) squares.Ask(p, squares_from, 0);

      float total[kChainPass * kStripTiles][1][4] = {};
      constexpr int kSums = TileGroups<kGroup>::kCount;
      float x_sums[kSums][1][4] = {};
      ChainX next;  // of the k tile after the one being worked on
#pragma unroll 1
      for (int tile = begin - 1; tile < end; ++tile) {
        XHalf x[2][1];
        if (tile >= begin) {
          while (__any_sync(kAllLanes, handed != nullptr && next.Missing())) {
            patience.Spend();
            ring.EnterNextPass();
            ring.Refill();
            // A word tells as much as all of them while there is nothing yet.
            const uint8_t* const word = handed + tile * kXTileBytes;
            if (__shfl_sync(kAllLanes, lane == 0 ? LoadRelaxed(word) : 0, 0) == kUnwritten)
              continue;
            if (next.Missing()) next.LoadHanded(handed, s.k, tile, lane, p.m);
          }
#pragma unroll
          for (int w = 0; w < kXWords; ++w) x[w / 8][0][w / 4 % 2][w % 4] = next.words[w];
        }
        if (tile + 1 < end) {
          if (handed == nullptr) {
            next.LoadRows(p.attention, s.k, tile + 1, lane, p.m);
          } else {
            next.LoadHanded(handed, s.k, tile + 1, lane, p.m);
          }
        }
        if (tile < begin) continue;
#pragma unroll
        for (int i = 0; i < 2 * kStepsPerHalf; ++i) {
          float (&sums)[1][4] = x_sums[i / TileGroups<kGroup>::kSteps];
          if (kGroup != 0 && i % TileGroups<kGroup>::kSteps == 0) Clear(sums);
          SumX<T>(x[i / kStepsPerHalf], i % kStepsPerHalf, ones.a, sums);
        }
        ring.EnterNextPass();
#pragma unroll
        for (int strip = 0; strip < kChainPass; ++strip) {
          if (strip >= count) break;
          ring.Refill();
          const uint8_t* const record = ring.Take();
          const auto load_x = [&](int half, XHalf(&to)[1]) {
#pragma unroll
            for (int i = 0; i < 8; ++i) to[0][i / 4][i % 4] = x[half][0][i / 4][i % 4];
          };
          using One = float[kStripTiles][1][4];
          AddRecord<kBits, T, kGroup, Zeros::kSumGiven>(
              record, kRecord / kStripTiles, load_x, x_sums, kAsymmetric, p.exponent, lane,
              reinterpret_cast<One&>(total[strip * kStripTiles]));
        }
      }

      // The warps' sums meet, in their order.
      const float square_sum = norms ? squares.Sum(p, squares_from, patience) : 0;
      __syncthreads();  // what was there is read
      if (norms && lane < 8) square_sums[warp * 8 + lane] = square_sum;
#pragma unroll
      for (int i = 0; i < kChainPass * kStripTiles; ++i) {
        if (i >= count * kStripTiles) break;
        float (&sums)[1][4] = total[i];
        if constexpr (kGroup == 0) {
          const int64_t at = (strip0 + first) * kStripTiles + i;
          ScaleRows<kBits, T, Zeros::kSumGiven>(sums, x_sums[0],
                                                {s.weights + s.row_scales + at * kTileRows * 2,
                                                 s.weights + s.row_zeros + at * kTileRows},
                                                kAsymmetric, lane);
        }
        mail[(i * kChainWarps + warp) * kLanes] =
            make_float4(sums[0][0], sums[0][1], sums[0][2], sums[0][3]);
      }
      __syncthreads();
      if (norms) {
        const TokenPair mean = MeanSquares(p, square_sums, lane);
        const TokenPair inverse = {rsqrtf(mean.a), rsqrtf(mean.b)};
        if (step != kStepO) factor = {inverse.a * unscale.a, inverse.b * unscale.b};
        scale = {inverse.a * (1 / kRoom), inverse.b * (1 / kRoom)};
        unscale = {mean.a * inverse.a * kRoom, mean.b * inverse.b * kRoom};
      }
      if (!finishes) continue;
      float sum[4] = {};
#pragma unroll
      for (int w = 0; w < kChainWarps; ++w) {
        const float4 v = mail[(warp * kChainWarps + w) * kLanes];
        sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
      }
      using Unit = TotalUnit<kBits, T>;
      sum[0] *= Unit::kRow * factor.a, sum[1] *= Unit::kRow * factor.b;
      sum[2] *= Unit::kRow8 * factor.a, sum[3] *= Unit::kRow8 * factor.b;
      if (adds) {
        residual.Add<T>(p, step, row_tile * kTileRows + lane / 4, lane, sum, scale);
      } else if (step == kStepGateUp) {
        HandOn<T>(p.handed[step], p.m, lane, row_tile * 8,
                  {Gated(p.gate, sum[0], sum[2]), Gated(p.gate, sum[1], sum[3])});
      } else {
        StoreSums<T>(GemmEnds{}, p.qkv, p.m, s.n, lane % 4 * 2, row_tile * kTileRows + lane / 4,
                     sum);
      }
    }
  }
}

// Instantiated once a width, in chain_gemm_w*.cu, to compile in parallel.
template <int kBits>
cudaError_t LaunchChainGemmBits(const ChainGemmParams& p, const PackedShape& format, Dtype dtype,
                                const LaunchConfig& config) {
  return ForFormat(dtype, format.group, [&]<typename T, int kGroup>() {
    return format.asymmetric ? LaunchLarge(ChainGemmKernel<kBits, T, kGroup, true>, config, p)
                             : LaunchLarge(ChainGemmKernel<kBits, T, kGroup, false>, config, p);
  });
}

}  // namespace babai::cuda
