#include "kernels/cuda/sm_part.h"

#include <cuda.h>

#include "absl/strings/str_cat.h"

namespace babai::cuda {
namespace {

struct Driver {
  decltype(&cuDeviceGet) get_device;
  decltype(&cuDeviceGetDevResource) get_resource;
  decltype(&cuDevSmResourceSplitByCount) split;
  decltype(&cuDevResourceGenerateDesc) describe;
  decltype(&cuGreenCtxCreate) create;
  decltype(&cuGreenCtxDestroy) destroy;
  decltype(&cuGreenCtxStreamCreate) make_stream;
};

template <typename Fn>
bool Find(const char* name, unsigned version, Fn* fn) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &entry, version, cudaEnableDefault, &found);
  *fn = reinterpret_cast<Fn>(entry);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess && entry != nullptr;
}

absl::StatusOr<Driver> FindDriver() {
  constexpr unsigned kParts = 12040, kStreams = 12050, kAlways = 2000;
  Driver d;
  if (Find("cuDeviceGet", kAlways, &d.get_device) &&
      Find("cuDeviceGetDevResource", kParts, &d.get_resource) &&
      Find("cuDevSmResourceSplitByCount", kParts, &d.split) &&
      Find("cuDevResourceGenerateDesc", kParts, &d.describe) &&
      Find("cuGreenCtxCreate", kParts, &d.create) &&
      Find("cuGreenCtxDestroy", kParts, &d.destroy) &&
      Find("cuGreenCtxStreamCreate", kStreams, &d.make_stream)) {
    return d;
  }
  cudaGetLastError();
  return absl::FailedPreconditionError(
      "the driver can not set multiprocessors aside: that needs CUDA 12.5 or newer");
}

absl::Status Refused(CUresult result, absl::string_view call) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(call, ": error ", int{result}));
}

class GreenPart final : public SmPart {
 public:
  GreenPart(const Driver& driver, CUgreenCtx context, int sms)
      : driver_(driver), context_(context), sms_(sms) {}
  ~GreenPart() override { driver_.destroy(context_); }

  absl::StatusOr<Stream> MakeStream() const override {
    int least = 0, greatest = 0;
    absl::Status status =
        FromCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities of streams");
    CUstream stream = nullptr;
    if (status.ok()) {
      status = Refused(driver_.make_stream(&stream, context_, CU_STREAM_NON_BLOCKING, least),
                       "cuGreenCtxStreamCreate");
    }
    if (!status.ok()) return status;
    return Stream::Own(stream);
  }
  int sms() const override { return sms_; }

 private:
  const Driver driver_;
  const CUgreenCtx context_;
  const int sms_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SmPart>> SmPart::Leaving(double share) {
  static const absl::StatusOr<Driver> driver = FindDriver();
  if (!driver.ok()) return driver.status();
  int ordinal = 0;
  absl::Status status = FromCuda(cudaGetDevice(&ordinal), "cudaGetDevice");
  if (status.ok()) status = FromCuda(cudaFree(nullptr), "the device's context");
  if (!status.ok()) return status;
  CUdevice device;
  CUdevResource all{}, part{};
  status = Refused(driver->get_device(&device, ordinal), "cuDeviceGet");
  if (status.ok()) {
    status = Refused(driver->get_resource(device, &all, CU_DEV_RESOURCE_TYPE_SM),
                     "cuDeviceGetDevResource");
  }
  if (!status.ok()) return status;
  constexpr int kTogether = 8;  // the driver's unit since compute capability 9.0
  const int sms = static_cast<int>((1 - share) * all.sm.smCount) / kTogether * kTogether;
  if (sms <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no part of ", all.sm.smCount, " multiprocessors leaves ", share, " of them"));
  }
  unsigned parts = 1;
  status =
      Refused(driver->split(&part, &parts, &all, nullptr, 0, sms), "cuDevSmResourceSplitByCount");
  CUdevResourceDesc description = nullptr;
  if (status.ok()) {
    status = Refused(driver->describe(&description, &part, 1), "cuDevResourceGenerateDesc");
  }
  CUgreenCtx context = nullptr;
  if (status.ok()) {
    status = Refused(driver->create(&context, description, device, CU_GREEN_CTX_DEFAULT_STREAM),
                     "cuGreenCtxCreate");
  }
  if (!status.ok()) return status;
  return std::make_unique<GreenPart>(*driver, context, static_cast<int>(part.sm.smCount));
}

}  // namespace babai::cuda
