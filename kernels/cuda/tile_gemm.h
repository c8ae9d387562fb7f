// y = x * W^T for some tokens on Hopper: tiles of rows x tokens, by products of a warp.
//
//   regime    m in 9..16 on Hopper, where reading W is the cost
//   roof      PackedShape::bytes() over memory bandwidth
//   method    tiles of 128 rows of W x 16 tokens, by mma.m16n8k16 on unscaled integers
//             (record_mma.cuh). Four warps feed a ring of (records of W, block of x). Tiles times
//             k, in one line, are shared out evenly among the SMs: blocks that share a tile leave
//             their sums in the workspace, and the one with the tile's end adds them in a fixed
//             order. W is read before the preceding kernel's results are awaited.
//   limits    sm_90a; what PackedShape allows
//   numerics  integer weights are exact, sums fp32. Deterministic for a given plan
//   source    even shares of a line of work: Stream-K, Osama et al. 2023, arXiv:2301.03598
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

constexpr int kTileGemmRows = 128;   // of a tile
constexpr int kTileGemmTokens = 16;  // likewise, and the most of a product

struct TileGemmPlan {
  int unit_tiles = 0;  // k tiles (128 columns) that a stage of the ring holds
  int stages = 0;
  int blocks = 0;        // among which the work is shared; at most as many as run at once
  int shared_bytes = 0;  // asked for even if less is needed: MoreThanHalf(), or all
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
constexpr int64_t TileGemmWorkspaceBytes(int blocks) {
  return int64_t{blocks} * kTileGemmRows * kTileGemmTokens * 4;
}

int64_t TileGemmSharedBytes(const PackedShape& shape, const TileGemmPlan& plan);

// The plan we measured to be best.
TileGemmPlan PlanTileGemm(const PackedShape& shape, int sms, int64_t shared_bytes);

cudaError_t LaunchTileGemm(const TileGemmArgs& args, const TileGemmPlan& plan, bool early_start,
                           cudaStream_t stream);

}  // namespace babai::cuda
