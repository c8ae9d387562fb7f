// What every GPU test needs: a device or a printed reason to skip, and buffers on it.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace babai::cuda {

// Null when there is a device, otherwise why there is none.
inline const char* NoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count > 0 ? nullptr : "no CUDA device";
}

// Of what a test has many of, as many as there is time for: an emulated device (emulated/simt.h) is
// slow.
constexpr int ManyOf(int on_a_gpu) {
#ifdef BABAI_EMULATED_DEVICE
  return (on_a_gpu + 39) / 40;
#else
  return on_a_gpu;
#endif
}

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* why = NoDevice()) GTEST_SKIP() << "needs a GPU: " << why;
  }
};

// A device copy of host data, for kernels of any stream: see Buffer::Of().
template <typename T>
class DeviceVector {
 public:
  explicit DeviceVector(const std::vector<T>& host) : size_(host.size()) {
    EXPECT_EQ(cudaMalloc(&data_, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(cudaStreamLegacy), cudaSuccess);
  }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> ToHost() const {
    std::vector<T> host(size_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

// A kernel launch, and all that it did, went well.
inline void Launched(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace babai::cuda
