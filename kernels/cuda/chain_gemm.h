// The products between two attentions of a decode step, in one launch: o, gate-up, down and the
// next block's q, k, v, with the additions to the residual stream, the norms and the gate.
//
//   regime    m in 1..8; blocks without biases or norms behind o and down, of one format throughout
//   roof      the four PackedShape::bytes() over memory bandwidth
//   method    a block on every SM has some strips of each product, and its warps split k, as in
//             slice_gemm.h. A warp's ring of records reads on across the products, so that memory
//             is read while a product waits for the one before. What one product hands to the next
//             lies in fragment order, and its words say themselves that they are there (see
//             partial_sums.cuh): a warp waits for its own columns only, without flags or fences.
//             Norms: what is handed on is x times the norm's weights, and the sums of squares
//             beside it; the next product's sums are divided by the root mean square at its end.
//             x is handed on over 64 times the root mean square that it had before the addition, so
//             that fp16 neither overflows nor loses what counts while that grows up to 65,000 times
//   limits    sm_80 or newer (early start: sm_90); TakesChainGemm(). Every block waits for others:
//             all must be on the device at a time. So at most one such launch of a process may run
//             at a time, and nothing that waits for it may keep an SM
//   numerics  as slice_gemm.h; of what is handed on, x is rounded to dtype before the division by
//             the root mean square instead of behind it. Deterministic for a given plan
//   failure   a word that does not come for about a second traps: the device is lost, not hung
//   measured  not yet (docs/perf/cuda_gemm.md says how); tested on an emulated device only
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"

namespace babai::cuda {

constexpr int kChainMaxTokens = 8;
constexpr int kChainWarps = 12;  // of a block: leaves room for attention's blocks

struct ChainLinear {
  const void* weights = nullptr;  // packed_layout.h, 128-byte aligned
  PackedShape shape;
};

struct ChainGemmArgs {    // device pointers, owned by the caller
  const void* attention;  // [m, o.k] of dtype, row-major, 16-byte aligned
  float* x;               // [m, hidden], the residual stream: o's and down's sums are added
  void* qkv;              // [m, qkv.n] of dtype; overwritten
  ChainLinear o, gate_up, down;
  ChainLinear qkv_linear;  // of the next block; no weights: there is none, the chain ends with down
  const float *mlp_norm, *next_norm;  // RMS norms' weights, [hidden]
  float eps;
  GateFunction gate;  // gate_up's rows in eights, as GemmOutput::kGate wants them
  // ChainGemmWorkspaceBytes(), all bytes 0xff but SquaresOfX(); one for all launches of a stream.
  void* workspace;
  int turn;  // 0 and 1 alternately: a launch puts back what the one before has left
  int m;
  Dtype dtype;
};

struct ChainGemmPlan {
  int blocks = 0;  // as many as SMs, or fewer; 0: none fits
  int slots = 0;   // records of a warp's ring
  int ahead = 0;   // of these, copied before the preceding kernel's results are waited for
};

// Whether these are products that one launch can do.
bool TakesChainGemm(const ChainGemmArgs& args);

// For launches that all have these widths.
int64_t ChainGemmWorkspaceBytes(int hidden, int intermediate);
// Where the sums of the squares of the residual stream belong before a step's first launch:
// [hidden / 16][8 tokens], of 16 neighbours each. A launch leaves them for the next one.
float* SquaresOfX(void* workspace);

ChainGemmPlan PlanChainGemm(const PackedShape& format, int sms, int64_t shared_bytes);
cudaError_t LaunchChainGemm(const ChainGemmArgs& args, const ChainGemmPlan& plan, bool early_start,
                            cudaStream_t stream);

}  // namespace babai::cuda
