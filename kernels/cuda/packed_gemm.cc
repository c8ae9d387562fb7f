#include "kernels/cuda/packed_gemm.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/slice_gemm.h"
#include "kernels/cuda/stream_gemm.h"
#include "kernels/cuda/wide_gemm.h"

namespace babai::cuda {
namespace {

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

bool IsStreamed(const PackedShape& shape, int m, const DeviceLimits& device) {
  if (m > kStreamMaxTokens) return false;
  // Where a block has a strip of many k tiles it waits for x longest: for all of it, while a warp
  // of slice_gemm.h waits for its own part. Not with one token, whose products take turns in what
  // they leave of an SM to the next, nor at other widths: measured to be slower.
  constexpr int kManyTiles = 4 * kSliceWarps<1>;
  if (m == 2 && shape.bits == 4 && shape.strips() <= device.sms && shape.k_tiles() >= kManyTiles &&
      PlanSliceGemm(shape, m, device.sms, device.shared_bytes).warps > 0) {
    return false;
  }
  // The longer k is, the less room has x in shared memory.
  return PlanStreamGemm(shape, m, device.sms, device.shared_bytes, Turn::kNarrow).stages > 0;
}

absl::Status Streamed(const PackedGemmArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const StreamGemmPlan plan = PlanStreamGemm(a.shape, a.m, device.sms, device.shared_bytes, a.turn);
  return FromCuda(LaunchStreamGemm({a.x, a.weights, a.y, a.shape, a.m, a.dtype, a.ends}, plan,
                                   a.early_start && device.major >= 9, stream),
                  "PackedGemm");
}

absl::Status Wide(const PackedGemmArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const int64_t shared_bytes = device.shared_bytes - (a.m <= kSparingTokens ? a.spared_bytes : 0);
  const WideGemmPlan plan = PlanWideGemm(a.shape, a.m, device.sms, shared_bytes);
  return FromCuda(LaunchWideGemm({a.x, a.weights, a.y, a.workspace, a.shape, a.m, a.dtype, a.ends},
                                 plan, a.early_start, stream),
                  "PackedGemm");
}

// Bytes of a token's y.
int64_t OutputBytes(const PackedGemmArgs& args) {
  constexpr int64_t kElement = 2;  // fp16 and bf16 alike
  const int64_t n = args.shape.n;
  if (args.ends.output == GemmOutput::kAdd) return n * static_cast<int64_t>(sizeof(float));
  return args.ends.output == GemmOutput::kGate ? n / 2 * kElement : n * kElement;
}

// Sixteen tokens at a time, or as many as shared memory has room for.
absl::Status Sliced(const PackedGemmArgs& a, const DeviceLimits& device, cudaStream_t stream) {
  const int64_t x_bytes = int64_t{a.shape.k} * 2, y_bytes = OutputBytes(a);
  for (int done = 0, m = 0; done < a.m; done += m) {
    SliceGemmPlan plan;
    for (m = std::min(kSliceMaxTokens, a.m - done);; m /= 2) {
      if (m == 0) return absl::InvalidArgumentError("PackedGemm: too little shared memory");
      plan = PlanSliceGemm(a.shape, m, device.sms, device.shared_bytes);
      if (plan.warps > 0) break;
    }
    const SliceGemmArgs part{
        {static_cast<const char*>(a.x) + done * x_bytes, a.weights,
         static_cast<char*>(a.y) + done * y_bytes, a.shape, m, a.dtype, a.ends},
        a.workspace};
    const bool early = a.early_start && device.major >= 9;
    const absl::Status launched =
        FromCuda(LaunchSliceGemm(part, plan, early, stream), "PackedGemm");
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
  return std::max(SliceGemmWorkspaceBytes(device.sms), WideGemmWorkspaceBytes(device.sms));
}

bool PackedGemmTakesNorm(const PackedShape& shape, int m, const DeviceLimits& device) {
  return StreamGemmTakesNorm(shape.k, m) && IsStreamed(shape, m, device);
}

absl::Status PackedGemm(const PackedGemmArgs& args, const DeviceLimits& device,
                        cudaStream_t stream) {
  if (absl::Status checked = Check(args); !checked.ok()) return checked;
  if (args.ends.norm != nullptr && !PackedGemmTakesNorm(args.shape, args.m, device)) {
    return absl::InvalidArgumentError("PackedGemm: no norm of so many tokens");
  }
  // Where one becomes faster than the next: docs/perf/cuda_gemm.md.
  if (IsStreamed(args.shape, args.m, device)) return Streamed(args, device, stream);
  if (args.m <= kSliceMaxTokens || device.major != 9) return Sliced(args, device, stream);
  return Wide(args, device, stream);
}

}  // namespace babai::cuda
