#include "kernels/cpu/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace babai::cpu {
namespace {
constexpr int64_t kLine = 64;
constexpr int64_t kHugePage = int64_t{2} << 20;
}  // namespace

AlignedBuffer::AlignedBuffer(int64_t bytes) {
  if (bytes <= 0) return;
  const int64_t unit = bytes >= kHugePage ? kHugePage : kLine;
  int64_t rounded = 0;
  if (__builtin_add_overflow(bytes, unit - 1, &rounded)) return;
  rounded = rounded / unit * unit;
  void* memory = std::aligned_alloc(unit, rounded);
  if (memory == nullptr) return;
  // Advice only: small pages work too.
  if (unit == kHugePage) (void)madvise(memory, rounded, MADV_HUGEPAGE);
  std::memset(memory, 0, rounded);
  data_ = static_cast<uint8_t*>(memory);
  bytes_ = bytes;
}

AlignedBuffer::~AlignedBuffer() { std::free(data_); }

}  // namespace babai::cpu
