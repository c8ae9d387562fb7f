#include "kernels/cpu/aligned_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace babai::cpu {
namespace {

bool AllZero(const AlignedBuffer& b) {
  return std::all_of(b.data(), b.data() + b.size(), [](uint8_t v) { return v == 0; });
}

TEST(AlignedBufferTest, IsZeroedAndAligned) {
  for (int64_t bytes : {1, 63, 64, 5000, 3 << 20}) {
    for (bool weights : {false, true}) {
      const AlignedBuffer b = weights ? AlignedBuffer::ForWeights(bytes) : AlignedBuffer(bytes);
      ASSERT_NE(b.data(), nullptr);
      EXPECT_EQ(b.size(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
      EXPECT_TRUE(AllZero(b));
    }
  }
}

TEST(AlignedBufferTest, NothingAndTooMuchHaveNoData) {
  EXPECT_EQ(AlignedBuffer().data(), nullptr);
  EXPECT_EQ(AlignedBuffer(0).data(), nullptr);
  EXPECT_EQ(AlignedBuffer(int64_t{1} << 46).data(), nullptr);
  EXPECT_EQ(AlignedBuffer(std::numeric_limits<int64_t>::max()).size(), 0);
  EXPECT_EQ(AlignedBuffer::ForWeights(std::numeric_limits<int64_t>::max()).data(), nullptr);
}

TEST(AlignedBufferTest, MovingLeavesNothingBehind) {
  AlignedBuffer a(100);
  uint8_t* data = a.data();
  AlignedBuffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(a.size(), 0);
}

// Buffers of a region stay apart, outlive one another in any order, and a region that was given
// back comes back zeroed.
TEST(AlignedBufferTest, WeightsShareRegionsWithoutTouchingEachOther) {
  for (int round = 0; round < 3; ++round) {
    std::vector<AlignedBuffer> buffers;
    for (int i = 0; i < 200; ++i) {
      buffers.push_back(AlignedBuffer::ForWeights(1000 * i + 1));
      ASSERT_TRUE(AllZero(buffers.back()));
      std::memset(buffers.back().data(), i + 1, buffers.back().size());
    }
    for (int i = 0; i < 200; i += 2) buffers[i] = AlignedBuffer();
    for (int i = 1; i < 200; i += 2) {
      const AlignedBuffer& b = buffers[i];
      ASSERT_TRUE(std::all_of(b.data(), b.data() + b.size(),
                              [i](uint8_t v) { return v == static_cast<uint8_t>(i + 1); }));
    }
  }
}

}  // namespace
}  // namespace babai::cpu
