// y = x * W^T for many tokens on Hopper: tiles of rows x tokens by warpgroup products.
//
//   regime    m > 4 on Hopper; up to about 64 tokens reading W is the cost, then arithmetic
//   roof      PackedShape::bytes() over memory bandwidth; 2 m n k over the tensor cores' rate
//   method    tiles of rows of W x tokens, in sizes that PlanTileGemm() picks. Up to 16 tokens
//             mma.m16n8k16 on unscaled integers (record_mma.cuh); above, weights become fp16 or
//             bf16 in registers, as operand A of wgmma. Four warps feed a ring of (records of W,
//             block of x). Tiles times k, in one line, are shared out evenly among the SMs: blocks
//             that share a tile leave their sums in the workspace, and the one with the tile's end
//             adds them in a fixed order. W is read before the preceding kernel's results are
//             awaited.
//   limits    sm_90a; what PackedShape allows
//   numerics  sums are fp32. Up to 16 tokens integer weights are exact; above, a weight is rounded
//             to T once, as when dequantized beforehand. Deterministic for a given plan
//   source    weights as register operand of wgmma: Machete, Neural Magic 2024; even shares of a
//             line of work: Stream-K, Osama et al. 2023, arXiv:2301.03598
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

struct TileGemmPlan {
  int tokens = 0, rows = 0;  // of a tile: 128 rows by 8, 16, 32, 64; 256 rows by 64, 128
  int unit_tiles = 0;        // k tiles (128 columns) that a stage of the ring holds
  int stages = 0;
  int blocks = 0;        // among which the work is shared; at most as many as run at once
  int shared_bytes = 0;  // asked for even if less is needed: see StreamGemmPlan
};

struct TileGemmArgs {
  const void* x;        // [m, k] of dtype, row-major, 16-byte aligned
  const void* weights;  // packed_layout.h, 128-byte aligned
  void* y;              // [m, n] of dtype; overwritten
  void* workspace;      // TileGemmWorkspaceBytes(), every byte 0xff: left so
  PackedShape shape;
  int m;
  Dtype dtype;
  GemmEnds ends;  // without a norm
};

// For launches of at most `blocks` blocks. Launches that may overlap need a workspace each.
constexpr int64_t TileGemmWorkspaceBytes(int blocks) { return int64_t{blocks} * 128 * 256 * 4; }

int64_t TileGemmSharedBytes(const PackedShape& shape, const TileGemmPlan& plan);

// The plan we measured to be best.
TileGemmPlan PlanTileGemm(const PackedShape& shape, int m, int sms, int64_t shared_bytes,
                          Turn turn);

cudaError_t LaunchTileGemm(const TileGemmArgs& args, const TileGemmPlan& plan, bool early_start,
                           cudaStream_t stream);

}  // namespace babai::cuda
