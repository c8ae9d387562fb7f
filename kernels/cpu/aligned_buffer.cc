#include "kernels/cpu/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace babai::cpu {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;
// Reserved at once; pages that no buffer reaches cost address space only.
constexpr int64_t kRegion = int64_t{64} << 20;

constexpr int64_t kMost = int64_t{1} << 46;  // beyond any address space

constexpr int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

std::shared_ptr<uint8_t> Allocate(int64_t bytes) {
  const int64_t rounded = RoundUp(bytes, kLine);
  void* memory = std::aligned_alloc(kLine, rounded);
  if (memory == nullptr) return nullptr;
  std::memset(memory, 0, rounded);
  return {static_cast<uint8_t*>(memory), std::free};
}

// Zeroed address space that begins on a huge page; null when there is none.
std::shared_ptr<uint8_t> MapRegion(int64_t bytes) {
  const int64_t mapped = bytes + kHugePage;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const std::shared_ptr<uint8_t> whole(static_cast<uint8_t*>(memory),
                                       [mapped](uint8_t* p) { munmap(p, mapped); });
  auto* start = reinterpret_cast<uint8_t*>(
      RoundUp(static_cast<int64_t>(reinterpret_cast<intptr_t>(memory)), kHugePage));
  (void)madvise(start, bytes, MADV_HUGEPAGE);  // advice only: small pages work too
  return {whole, start};
}

// The region that weights are cut from now.
class Regions {
 public:
  std::shared_ptr<uint8_t> Cut(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<uint8_t> region = current_.lock();
    if (region == nullptr || used_ + bytes > kRegion) {
      region = MapRegion(kRegion);
      current_ = region;
      used_ = 0;
    }
    if (region == nullptr) return nullptr;
    uint8_t* start = region.get() + used_;
    used_ += bytes;
    return {region, start};
  }

 private:
  std::mutex mutex_;
  std::weak_ptr<uint8_t> current_;
  int64_t used_ = 0;
};

Regions& TheRegions() {
  static auto* regions = new Regions;  // outlives every static buffer
  return *regions;
}

}  // namespace

AlignedBuffer::AlignedBuffer(int64_t bytes) {
  if (bytes <= 0 || bytes > kMost) return;
  data_ = bytes < kHugePage ? Allocate(bytes) : MapRegion(bytes);
  if (data_ != nullptr) bytes_ = bytes;
}

AlignedBuffer AlignedBuffer::ForWeights(int64_t bytes) {
  if (bytes <= 0 || bytes > kRegion / 2) return AlignedBuffer(bytes);
  AlignedBuffer buffer;
  buffer.data_ = TheRegions().Cut(RoundUp(bytes, kLine));
  if (buffer.data_ != nullptr) buffer.bytes_ = bytes;
  return buffer;
}

}  // namespace babai::cpu
