// Memory that kernels read in whole cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace babai::cpu {

// Owns zeroed memory, aligned to 64 bytes. From 2 MiB on it is aligned to, and advised for, huge
// pages: a decode step reads all weights, and a 4-KiB page costs a TLB miss each.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Null data() when the system has no memory left; bytes >= 0.
  explicit AlignedBuffer(int64_t bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace babai::cpu
