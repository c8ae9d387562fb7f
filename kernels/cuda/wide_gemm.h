// y = x * W^T for many tokens on Hopper: large tiles of rows x tokens by warpgroup products.
//
//   regime    m > 16 on Hopper; up to about 64 tokens reading W is the cost, then arithmetic, from
//             about 512 on power
//   roof      PackedShape::bytes() over memory bandwidth; 2 m n k over the tensor cores' rate
//   method    a block has a tile of rows of W x tokens at a time, in sizes that PlanWideGemm()
//             picks. Weights become fp16 or bf16 in registers, as operand A of wgmma; the next
//             fragments are made while the last products run. Two threads feed a ring of (records
//             of W, block of x). Tiles that do not come out even may be shared in stretches of k:
//             sums are passed on through the workspace in a fixed order. With few tiles k is also
//             split between the two blocks of a cluster, which exchange halves of their sums
//             through shared memory. W is read before the preceding kernel's results are awaited.
//   limits    sm_90a; what PackedShape allows
//   numerics  sums are fp32; a weight is rounded to T once, as when dequantized beforehand, those
//             of symmetric fp16 ones after a power of two (scaled_weights.cuh, NormedScale).
//             Deterministic for a given plan
//   source    weights as register operand of wgmma: Machete, Neural Magic 2024; shared tiles:
//             wide_division.h
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

struct WideGemmPlan {
  // Of a tile: 32 or 64 by 128, 192 or 256, 128 by 128 or 256, 192 or 256 by 128.
  int tokens = 0, rows = 0;
  int parts = 0;       // of k in a cluster, a block each: 1 or 2
  int unit_tiles = 0;  // k tiles (128 columns) that a stage of the ring holds: 1, 2 or 4
  int stages = 0;
  int clusters = 0;
  // false: each cluster has whole tiles, and there are at least as many. true: after those, the
  // clusters have equal stretches of the k tiles of all the others. With two parts a cluster has
  // one piece of one tile: clusters are a multiple of tiles.
  bool shared = false;
};

struct WideGemmArgs {
  const void* x;        // [m, k] of dtype, row-major, 16-byte aligned
  const void* weights;  // packed_layout.h, 128-byte aligned
  void* y;              // [m, n] of dtype; overwritten
  void* workspace;      // WideGemmWorkspaceBytes(), every byte 0xff: left so
  PackedShape shape;
  int m;
  Dtype dtype;
  GemmEnds ends;  // without a norm
};

// For launches of at most `blocks` blocks. Launches that may overlap need a workspace each.
constexpr int64_t WideGemmWorkspaceBytes(int blocks) { return int64_t{blocks} * 128 * 256 * 4; }

int64_t WideGemmSharedBytes(const PackedShape& shape, const WideGemmPlan& plan);

// The plan that takes least by a model with measured constants. `shared_bytes`: most a block may
// have.
WideGemmPlan PlanWideGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes);

cudaError_t LaunchWideGemm(const WideGemmArgs& args, const WideGemmPlan& plan, bool early_start,
                           cudaStream_t stream);

}  // namespace babai::cuda
