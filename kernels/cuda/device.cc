#include "kernels/cuda/device.h"

#include "absl/strings/str_cat.h"

namespace babai::cuda {
namespace {

// Errors after which the context serves no further call (CUDA runtime API reference, "sticky").
bool BreaksTheContext(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorDevicesUnavailable:
    case cudaErrorContextIsDestroyed:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status FromCuda(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorString(error));
  if (BreaksTheContext(error)) return absl::UnavailableError(message);
  cudaGetLastError();  // otherwise the next launch would report it once more
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::Status CheckDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return absl::OkStatus();
  cudaGetLastError();
  return absl::FailedPreconditionError(error == cudaSuccess ? "no CUDA device"
                                                            : cudaGetErrorString(error));
}

absl::StatusOr<DeviceMemory> GetDeviceMemory() {
  size_t free = 0, total = 0;
  const absl::Status got = FromCuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  if (!got.ok()) return got;
  return DeviceMemory{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

absl::StatusOr<Buffer> Buffer::Make(int64_t bytes, bool pinned) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  const cudaError_t error =
      pinned ? cudaMallocHost(&buffer.data_, bytes) : cudaMalloc(&buffer.data_, bytes);
  const absl::Status made =
      FromCuda(error, absl::StrCat(bytes, pinned ? " bytes of pinned memory" : " device bytes"));
  if (!made.ok()) {
    buffer.data_ = nullptr;
    return made;
  }
  buffer.bytes_ = bytes, buffer.pinned_ = pinned;
  return buffer;
}

absl::StatusOr<Buffer> Buffer::OnDevice(int64_t bytes) { return Make(bytes, /*pinned=*/false); }

absl::StatusOr<Buffer> Buffer::Pinned(int64_t bytes) { return Make(bytes, /*pinned=*/true); }

absl::StatusOr<Buffer> Buffer::CopyOf(const void* values, int64_t bytes) {
  absl::StatusOr<Buffer> buffer = OnDevice(bytes);
  if (!buffer.ok() || bytes == 0) return buffer;
  cudaError_t error = cudaMemcpy(buffer->data(), values, bytes, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) error = cudaStreamSynchronize(cudaStreamLegacy);
  if (absl::Status copied = FromCuda(error, "copying to the device"); !copied.ok()) return copied;
  return buffer;
}

// An owner's last act: on a broken context nothing can be freed, and nobody is left to tell.
Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (pinned_) {
    cudaFreeHost(data_);
  } else {
    cudaFree(data_);
  }
}

absl::StatusOr<Stream> Stream::Make(Priority priority) {
  int least = 0, greatest = 0;
  absl::Status status =
      FromCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities of streams");
  if (!status.ok()) return status;
  Stream made;
  status = FromCuda(cudaStreamCreateWithPriority(&made.stream_, cudaStreamNonBlocking,
                                                 priority == Priority::kUrgent ? greatest : least),
                    "a stream");
  if (!status.ok()) return status;
  return made;
}

Stream Stream::Own(cudaStream_t stream) {
  Stream owner;
  owner.stream_ = stream;
  return owner;
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status Stream::Synchronize() const {
  return FromCuda(cudaStreamSynchronize(stream_), "waiting for the device");
}

absl::StatusOr<Event> Event::Make() {
  Event made;
  const absl::Status status =
      FromCuda(cudaEventCreateWithFlags(&made.event_, cudaEventDisableTiming), "an event");
  if (!status.ok()) return status;
  return made;
}

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

absl::Status Event::Record(const Stream& stream) const {
  return FromCuda(cudaEventRecord(event_, stream.get()), "an event");
}

absl::Status Event::Wait() const { return FromCuda(cudaEventSynchronize(event_), "an event"); }

}  // namespace babai::cuda
