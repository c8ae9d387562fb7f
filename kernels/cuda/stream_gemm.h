// y = x * W^T for few tokens: each warp streams its own stretch of W through its own ring.
//
//   regime    m in 1..2, where reading W is all the cost
//   roof      PackedShape::bytes() over memory bandwidth
//   method    weights are operand A (16 rows) of mma.m16n8k16, tokens its 8 columns. A block owns
//             some strips; its eight warps split their records into contiguous runs. Each warp has
//             its own ring, filled by cp.async, a group of copies a unit, and refills what it has
//             just consumed: no block-wide barrier until the end, when partial sums meet in shared
//             memory. The rings are filled before the preceding kernel's results are waited for.
//   limits    sm_80 or newer (early start: sm_90); what PackedShape allows; x in shared memory
//   numerics  integer weights are exact, sums fp32, one fp32 multiply by the scale a group and one
//             rounding of y. Deterministic for a given plan: every sum has a fixed order
//   source    fragment order and one-instruction dequantization: MARLIN, Frantar et al. 2024,
//             arXiv:2408.11743. Differs: subnormal operands instead of a magic number, scales on
//             the accumulator, a ring a warp, no split of k across blocks
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

constexpr int kStreamMaxTokens = 2;
constexpr int kStreamWarps = 8;  // more gain nothing (docs/perf/cuda_gemm.md)

// Of a warp's ring, by the bits of a weight: the records of a unit, which is what is waited for,
// and the units it holds; few where shared memory has no room for more.
constexpr int kUnitRecords[] = {0, 0, 2, 2, 1, 0, 0, 0, 1};
constexpr int kDeepStages[] = {0, 0, 5, 3, 4, 0, 0, 0, 4};
constexpr int kShallowStages = 2;

struct StreamGemmPlan {
  int blocks = 0;  // the strips are shared out among these
  int stages = 0;  // of a warp's ring: kDeepStages or kShallowStages
  // Asked for even if less is needed: a turn's part of an SM's (below), so that each SM has room
  // for one block of this kernel and one of the next, which fills its rings meanwhile; or more than
  // half of it, up to all. Otherwise, or with an SM without a block of this kernel, two blocks of
  // the next may share an SM while others have none: it then takes twice as long (measured). Hence
  // also as many blocks as SMs.
  int shared_bytes = 0;
};

struct StreamGemmArgs {
  const void* x;        // [m, k] of dtype, row-major, 16-byte aligned
  const void* weights;  // packed_layout.h, 128-byte aligned
  void* y;              // [m, n] of dtype; overwritten
  PackedShape shape;
  int m;
  Dtype dtype;
  GemmEnds ends;
};

// Two products' blocks share an SM, but never two of a kWide one: it can start beside any kernel
// and still have one block on each SM. A kNarrow one has that only right behind another product,
// whose blocks hold a place on every SM.
enum class Turn { kWide, kNarrow };

// What a block of that turn takes of an SM that gives one block at most `shared_bytes`.
constexpr int64_t SharedOfTurn(int64_t shared_bytes, Turn turn) {
  constexpr int64_t kReserved = 1024;  // of each block, by the system
  const int64_t half = (shared_bytes + kReserved) / 2 - kReserved;
  return turn == Turn::kWide ? half + 1024 : half - 1024;
}

// Of an SM that gives one block at most `shared_bytes`: so much that two blocks do not fit, but
// other kernels' do.
constexpr int64_t MoreThanHalf(int64_t shared_bytes) {
  return SharedOfTurn(shared_bytes, Turn::kWide);
}

// Whether x may be normed on its way in: each thread keeps what it has of a row in registers.
constexpr int kNormQuads = 8;  // of a thread, four neighbours each
constexpr bool StreamGemmTakesNorm(int k, int m) {
  return m <= kStreamMaxTokens && k <= kStreamWarps / m * kLanes * kNormQuads * 4;
}

// Shared memory that one block needs under this plan.
int64_t StreamGemmSharedBytes(const PackedShape& shape, int m, const StreamGemmPlan& plan);

// The plan we measured to be best; `sms` and `shared_bytes` describe the device. stages == 0: no
// plan fits, m is too large for k.
StreamGemmPlan PlanStreamGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes,
                              Turn turn);

cudaError_t LaunchStreamGemm(const StreamGemmArgs& args, const StreamGemmPlan& plan,
                             bool early_start, cudaStream_t stream);

}  // namespace babai::cuda
