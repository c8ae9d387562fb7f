#include "kernels/cuda/packed_gemm.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream_gemm.h"
#include "kernels/cuda/tile_gemm.h"

namespace babai::cuda {
namespace {

// Where tile_gemm.h becomes the faster (docs/perf/cuda_gemm.md).
constexpr int kStreamBestTokens = 2;

absl::Status Check(const PackedGemmArgs& a) {
  const PackedShape& s = a.shape;
  const bool known_bits = s.bits == 2 || s.bits == 3 || s.bits == 4 || s.bits == 8;
  const bool known_group = s.group == 0 || s.group == 32 || s.group == 64 || s.group == 128;
  if (!known_bits || !known_group) return absl::InvalidArgumentError("PackedGemm: unknown format");
  if (a.m < 1 || s.n < 1 || s.k < 32 || s.k % 32 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("PackedGemm: no kernel for m ", a.m, ", n ", s.n, ", k ", s.k));
  }
  if (reinterpret_cast<uintptr_t>(a.x) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(a.weights) % 128 != 0) {
    return absl::InvalidArgumentError("PackedGemm: x or weights not aligned");
  }
  return absl::OkStatus();
}

absl::Status Tiled(const PackedGemmArgs& args, const DeviceLimits& device, cudaStream_t stream) {
  const TileGemmPlan plan = PlanTileGemm(args.shape, args.m, device.sms, device.shared_bytes);
  return FromCuda(
      LaunchTileGemm({args.x, args.weights, args.y, args.workspace, args.shape, args.m, args.dtype},
                     plan, args.early_start, stream),
      "PackedGemm");
}

// Eight tokens at a time.
absl::Status Streamed(const PackedGemmArgs& args, const DeviceLimits& device, cudaStream_t stream) {
  constexpr int64_t kElement = 2;  // bytes, fp16 and bf16 alike
  for (int done = 0, m = 0; done < args.m; done += m) {
    m = std::min(kStreamMaxTokens, args.m - done);
    StreamGemmPlan plan;
    // The longer k is, the fewer tokens fit shared memory beside the weights on their way.
    for (;; m /= 2) {
      plan = PlanStreamGemm(args.shape, m, device.sms, device.shared_bytes, device.major >= 9);
      if (plan.stages > 0) break;
      if (m == 1)
        return absl::InvalidArgumentError(
            absl::StrCat("PackedGemm: k ", args.shape.k, " is too long"));
    }
    const StreamGemmArgs part{static_cast<const char*>(args.x) + kElement * done * args.shape.k,
                              args.weights,
                              static_cast<char*>(args.y) + kElement * done * args.shape.n,
                              args.shape,
                              m,
                              args.dtype};
    const bool early = args.early_start && device.major >= 9;
    absl::Status launched = FromCuda(LaunchStreamGemm(part, plan, early, stream), "PackedGemm");
    if (!launched.ok()) return launched;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DeviceLimits> GetDeviceLimits(int device) {
  DeviceLimits limits;
  int shared = 0;
  for (const auto& [attribute, value] : {std::pair{cudaDevAttrMultiProcessorCount, &limits.sms},
                                         {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared},
                                         {cudaDevAttrComputeCapabilityMajor, &limits.major}}) {
    const absl::Status got =
        FromCuda(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
    if (!got.ok()) return got;
  }
  limits.shared_bytes = shared;
  return limits;
}

int64_t PackedGemmWorkspaceBytes(const DeviceLimits& device) {
  return TileGemmWorkspaceBytes(device.sms);
}

absl::Status PackedGemm(const PackedGemmArgs& args, const DeviceLimits& device,
                        cudaStream_t stream) {
  if (absl::Status checked = Check(args); !checked.ok()) return checked;
  if (device.major == 9 && args.m > kStreamBestTokens) return Tiled(args, device, stream);
  return Streamed(args, device, stream);
}

}  // namespace babai::cuda
