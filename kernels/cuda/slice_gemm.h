// y = x * W^T for a few tokens: the warps of a block split k, and keep x in registers.
//
//   regime    m in 3..16, where reading W is nearly all the cost
//   roof      PackedShape::bytes() over memory bandwidth
//   method    weights are operand A (16 rows) of mma.m16n8k16, tokens its 8 columns. A block owns
//             some strips of 32 rows; each of its warps has some of the k tiles for all of them,
//             and a ring of its own, refilled by cp.async. It takes up to four strips at the same
//             128 columns one after another: x, its fragments and its sums, is made for one and
//             serves all. The warps' sums meet in shared memory after four strips. The first copies
//             come before the preceding kernel's results are waited for. From nine tokens on the
//             sums of x, times the zero point, are what a group's products start from; and where a
//             block would have a strip at most, two make a team that has the strips of both and
//             half of k each: a launch reads x as often as it has blocks. Its warps take most of an
//             SM's registers: few other kernels' blocks are there beside them, which is why
//             stream_gemm.h is faster in a model at one and two tokens
//   limits    sm_80 or newer (early start: sm_90); what PackedShape allows
//   numerics  integer weights are exact, sums fp32, one fp32 multiply by the scale a group and one
//             rounding of y. Deterministic for a given plan: every sum has a fixed order
//   source    dequantization as in stream_gemm.h; warps that split k in a block: Humming, MARLIN
//             (Frantar et al. 2024, arXiv:2408.11743). Differs: x outlives a strip in registers
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

constexpr int kSliceMaxTokens = 16;
constexpr int kPassStrips = 4;  // that a warp takes side by side: their sums stay in registers

// For so many eights of tokens: a block's warps, at most. With two, a thread needs 200 registers.
template <int kEights>
constexpr int kSliceWarps = kEights == 1 ? 16 : 8;
constexpr int SliceEights(int m) { return (m + 7) / 8; }
constexpr int MaxSliceWarps(int m) { return SliceEights(m) == 1 ? kSliceWarps<1> : kSliceWarps<2>; }

// The records of a unit, which is what a warp waits for, and the units of its ring.
constexpr int SliceUnit(int bits, int eights) { return bits <= (eights == 1 ? 3 : 4) ? 2 : 1; }
constexpr int SliceRing(int bits, int eights) { return bits < 4 && eights == 1 ? 2 : 3; }

struct SliceGemmPlan {
  // The strips are shared out among these, or among teams of them: as many as SMs, so that each has
  // one. With an SM without a block of this kernel two blocks of the next may share an SM while
  // others have none: it then takes twice as long (measured).
  int blocks = 0;
  int team = 1;          // 1, or from nine tokens on 2 where a team has kPassStrips at most
  int warps = 0;         // of a block, at most MaxSliceWarps()
  int ahead = 0;         // units copied before the preceding kernel's results are waited for
  int x_tiles = 1;       // k tiles of x that a warp has room for, and is ahead
  int shared_bytes = 0;  // asked for even if less is needed: MoreThanHalf()
};

struct SliceGemmArgs : StreamGemmArgs {  // without a norm
  void*
      workspace;  // SliceGemmWorkspaceBytes(), every byte 0xff: left so; may be null without teams
};

// For launches of at most `blocks` blocks. Launches that may overlap need a workspace each.
constexpr int64_t SliceGemmWorkspaceBytes(int blocks) {
  return int64_t{blocks / 2} * kPassStrips * kStripRows * kSliceMaxTokens * 4;
}

// Shared memory that one block needs under this plan.
int64_t SliceGemmSharedBytes(const PackedShape& shape, int m, const SliceGemmPlan& plan);

// The plan we measured to be best; `sms` and `shared_bytes` describe the device.
// warps == 0: no plan fits, there is too little shared memory.
SliceGemmPlan PlanSliceGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes);

cudaError_t LaunchSliceGemm(const SliceGemmArgs& args, const SliceGemmPlan& plan, bool early_start,
                            cudaStream_t stream);

}  // namespace babai::cuda
