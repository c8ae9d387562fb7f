// What stands on the CUDA runtime: a device's errors as statuses, and owners of its memory, streams
// and events. Every call works on the thread's current device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace babai::cuda {

// What an error of the runtime means for a caller:
//   ResourceExhausted  no memory; the device is as it was before
//   Unavailable        the context is broken: everything this process asks of the device from now
//                      on fails too
//   Internal           anything else
absl::Status FromCuda(cudaError_t error, absl::string_view what);

// FailedPrecondition, with the runtime's own words: no driver, no device, a driver too old.
absl::Status CheckDevice();

// Bytes that can be allocated now, and all the device has.
struct DeviceMemory {
  int64_t free = 0, total = 0;
};
absl::StatusOr<DeviceMemory> GetDeviceMemory();

// Bytes on the device or pinned on the host, at least 256-byte aligned. No bytes: a null pointer.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_);
    std::swap(pinned_, other.pinned_);
    return *this;
  }
  ~Buffer();

  static absl::StatusOr<Buffer> OnDevice(int64_t bytes);
  static absl::StatusOr<Buffer> Pinned(int64_t bytes);
  // On the device, with a copy of `values` for kernels of any stream: a copy from memory that is
  // not pinned may still be under way when cudaMemcpy() returns, here it is not.
  template <typename T>
  static absl::StatusOr<Buffer> Of(absl::Span<const T> values) {
    return CopyOf(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
  }

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  static absl::StatusOr<Buffer> Make(int64_t bytes, bool pinned);
  static absl::StatusOr<Buffer> CopyOf(const void* values, int64_t bytes);

  void* data_ = nullptr;
  int64_t bytes_ = 0;
  bool pinned_ = false;
};

// A stream that does not wait for the legacy default stream.
class Stream {
 public:
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();
  // Blocks of kUrgent streams' kernels go first where others wait for a place.
  enum class Priority { kUsual, kUrgent };
  static absl::StatusOr<Stream> Make(Priority priority = Priority::kUsual);
  static Stream Own(cudaStream_t stream);  // one that was made elsewhere

  cudaStream_t get() const { return stream_; }
  absl::Status Synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream that the host can wait for.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();
  static absl::StatusOr<Event> Make();

  absl::Status Record(const Stream& stream) const;
  absl::Status Wait() const;  // at once if it was never recorded

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace babai::cuda
