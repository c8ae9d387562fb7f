// y = x * W^T with packed weights of 2, 3, 4 or 8 bits, for any m: the one door to the kernels
// below.
//
//   regime    m <= 2: stream_gemm.h, but for two tokens and few rows of many columns of 4 bits;
//             else m <= 16: slice_gemm.h; above, wide_gemm.h on Hopper, elsewhere slice_gemm.h on
//             sixteen tokens at a time
//   roof      PackedShape::bytes() over memory bandwidth; 2 m n k over the tensor cores' rate
//   limits    k a multiple of 32; groups of 32, 64, 128 or a row; fp16 or bf16 x and y; sm_80 or
//             newer
//   numerics  see the kernels; deterministic for a device, shape and m
//   measured  docs/perf/cuda_gemm.md, by bench/gemm
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_ends.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/stream_gemm.h"

namespace babai::cuda {

// What the planner asks a device, once.
struct DeviceLimits {
  int sms = 0;
  int64_t shared_bytes = 0;  // most a block may have
  int major = 0;             // compute capability
};
// Internal: no such device, or the driver failed.
absl::StatusOr<DeviceLimits> GetDeviceLimits(int device);

// A buffer that PackedGemm() needs for each stream: filled with bytes 0xff once, then left alone.
int64_t PackedGemmWorkspaceBytes(const DeviceLimits& device);

struct PackedGemmArgs {  // device pointers, owned by the caller
  const void* x;         // [m, k] of dtype, row-major, 16-byte aligned
  const void* weights;   // RepackForGpu()'s bytes, 128-byte aligned
  void* y;               // [m, n] of dtype, row-major; overwritten
  void* workspace;       // PackedGemmWorkspaceBytes(), 128-byte aligned
  PackedShape shape;
  int m;
  Dtype dtype;
  // Starts while the stream's preceding kernel still runs and reads weights meanwhile. Right unless
  // that kernel writes these weights.
  bool early_start = true;
  GemmEnds ends;  // change what x and y are
  Turn turn = Turn::kWide;
  // Shared memory of an SM that a block of the kernel behind wants, so that it can start before
  // this one ends: left to it up to kSparingTokens tokens.
  int64_t spared_bytes = 0;
};

// Beyond it all of an SM's shared memory is worth more to the product.
constexpr int kSparingTokens = 64;

// Whether GemmEnds::norm may be given at m tokens.
bool PackedGemmTakesNorm(const PackedShape& shape, int m, const DeviceLimits& device);

// Enqueues on `stream` and returns without waiting; allocates nothing.
// InvalidArgument: outside the limits. Internal: the launch failed.
absl::Status PackedGemm(const PackedGemmArgs& args, const DeviceLimits& device,
                        cudaStream_t stream);

}  // namespace babai::cuda
