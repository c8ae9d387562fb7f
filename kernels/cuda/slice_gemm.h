// y = x * W^T for a few tokens: the warps of a block split k, and keep x in registers.
//
//   regime    m in 3..8, where reading W is nearly all the cost
//   roof      PackedShape::bytes() over memory bandwidth
//   method    weights are operand A (16 rows) of mma.m16n8k16, tokens its 8 columns. A block owns
//             some strips of 32 rows; each of its warps has some of the k tiles for all of them,
//             and a ring of its own, refilled by cp.async. It takes up to four strips at the same
//             128 columns one after another: x, its fragments and its sums, is made for one and
//             serves all. The warps' sums meet in shared memory after four strips. The first copies
//             come before the preceding kernel's results are waited for. Sixteen warps hide one
//             another's waits but take all of an SM's registers: no other kernel's block is there
//             beside them, which is why stream_gemm.h is faster in a model at one and two tokens
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

constexpr int kSliceMaxTokens = 8;
constexpr int kSliceMaxWarps = 16;

// Of a warp's ring, by the bits of a weight: the units, of stream_gemm.h's kUnitRecords.
constexpr int kRingUnits[] = {0, 0, 2, 2, 3, 0, 0, 0, 4};

struct SliceGemmPlan {
  // The strips are shared out among these: as many as SMs, so that each has one. With an SM without
  // a block of this kernel two blocks of the next may share an SM while others have none: it then
  // takes twice as long (measured).
  int blocks = 0;
  int warps = 0;         // of a block, at most kSliceMaxWarps
  int ahead = 0;         // units copied before the preceding kernel's results are waited for
  int shared_bytes = 0;  // asked for even if less is needed: MoreThanHalf()
};

using SliceGemmArgs = StreamGemmArgs;  // without a norm

// Shared memory that one block needs under this plan.
int64_t SliceGemmSharedBytes(const PackedShape& shape, int m, const SliceGemmPlan& plan);

// The plan we measured to be best; `sms` and `shared_bytes` describe the device.
// warps == 0: no plan fits, there is too little shared memory.
SliceGemmPlan PlanSliceGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes);

cudaError_t LaunchSliceGemm(const SliceGemmArgs& args, const SliceGemmPlan& plan, bool early_start,
                            cudaStream_t stream);

}  // namespace babai::cuda
