// Memory that kernels read in whole cache lines.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

namespace babai::cpu {

// Owns zeroed memory, aligned to 64 bytes; from 2 MiB on aligned to, and advised for, huge pages.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Null data() when the system has no memory left; bytes >= 0.
  explicit AlignedBuffer(int64_t bytes);

  // The same, cut one after another from large regions of huge pages: a decode step reads all
  // weights, and a page of 4 KiB costs it a TLB miss and a restart of the processor's prefetcher.
  // A region is given back when its last buffer goes, so this is for what lives long. Thread-safe.
  static AlignedBuffer ForWeights(int64_t bytes);

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  int64_t size() const { return bytes_; }

  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    bytes_ = other.bytes_;
    other.bytes_ = 0;
    return *this;
  }

 private:
  std::shared_ptr<uint8_t> data_;  // or a part of a region that others share
  int64_t bytes_ = 0;
};

}  // namespace babai::cpu
