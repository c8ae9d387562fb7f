#include "kernels/cuda/packed_gemm.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/stream_gemm.h"
#include "kernels/cuda/tile_gemm.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {
namespace {

// Where tile_gemm.h becomes the faster (docs/perf/cuda_gemm.md).
constexpr int kStreamBestTokens = 4;

bool IsTiled(const PackedShape& shape, int m, const DeviceLimits& device) {
  if (device.major != 9) return false;
  return m > kStreamBestTokens ||
         PlanStreamGemm(shape, m, device.sms, device.shared_bytes, Turn::kNarrow).stages !=
             kDeepStages[shape.bits];
}

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
  if (a.ends.output == GemmOutput::kGate && s.n % kTileRows != 0) {
    return absl::InvalidArgumentError(absl::StrCat("PackedGemm: no pairs of gate and up in ", s.n));
  }
  return absl::OkStatus();
}

absl::Status Tiled(const PackedGemmArgs& args, const DeviceLimits& device, cudaStream_t stream) {
  if (args.m > kTileGemmTokens) {
    const WideGemmPlan plan =
        PlanWideGemm(args.shape, args.m, device.sms, device.shared_bytes);
    return FromCuda(LaunchWideGemm({args.x, args.weights, args.y, args.workspace, args.shape,
                                    args.m, args.dtype, args.ends},
                                   plan, args.early_start, stream),
                    "PackedGemm");
  }
  // Two of these beside one another are slower, whatever stands between them (measured).
  const TileGemmPlan plan =
      PlanTileGemm(args.shape, args.m, device.sms, device.shared_bytes, Turn::kWide);
  return FromCuda(LaunchTileGemm({args.x, args.weights, args.y, args.workspace, args.shape, args.m,
                                  args.dtype, args.ends},
                                 plan, args.early_start, stream),
                  "PackedGemm");
}

// Bytes of a token's y.
int64_t OutputBytes(const PackedGemmArgs& args) {
  constexpr int64_t kElement = 2;  // fp16 and bf16 alike
  const int64_t n = args.shape.n;
  if (args.ends.output == GemmOutput::kAdd) return n * static_cast<int64_t>(sizeof(float));
  return args.ends.output == GemmOutput::kGate ? n / 2 * kElement : n * kElement;
}

// Eight tokens at a time.
absl::Status Streamed(const PackedGemmArgs& args, const DeviceLimits& device, cudaStream_t stream) {
  const bool normed = args.ends.norm != nullptr;
  const int64_t x_bytes = int64_t{args.shape.k} * (normed ? 4 : 2), y_bytes = OutputBytes(args);
  for (int done = 0, m = 0; done < args.m; done += m) {
    m = std::min(kStreamMaxTokens, args.m - done);
    StreamGemmPlan plan;
    // The longer k is, the fewer tokens fit shared memory beside the weights on their way.
    for (;; m /= 2) {
      plan = PlanStreamGemm(args.shape, m, device.sms, device.shared_bytes, args.turn);
      if (plan.stages > 0) break;
      if (m == 1)
        return absl::InvalidArgumentError(
            absl::StrCat("PackedGemm: k ", args.shape.k, " is too long"));
    }
    const StreamGemmArgs part{static_cast<const char*>(args.x) + done * x_bytes,
                              args.weights,
                              static_cast<char*>(args.y) + done * y_bytes,
                              args.shape,
                              m,
                              args.dtype,
                              args.ends};
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
  return std::max(TileGemmWorkspaceBytes(device.sms), WideGemmWorkspaceBytes(device.sms));
}

bool PackedGemmTakesNorm(const PackedShape& shape, int m, const DeviceLimits& device) {
  return !IsTiled(shape, m, device) && StreamGemmTakesNorm(shape.k, m);
}

absl::Status PackedGemm(const PackedGemmArgs& args, const DeviceLimits& device,
                        cudaStream_t stream) {
  if (absl::Status checked = Check(args); !checked.ok()) return checked;
  if (args.ends.norm != nullptr && !PackedGemmTakesNorm(args.shape, args.m, device)) {
    return absl::InvalidArgumentError("PackedGemm: no norm of so many tokens");
  }
  if (IsTiled(args.shape, args.m, device)) return Tiled(args, device, stream);
  return Streamed(args, device, stream);
}

}  // namespace babai::cuda
