// Cutting a matrix into tiles (tile.h) and going through them on all threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/thread_pool.h"

namespace babai {

// An owned array of T, aligned for vector loads. data() is null if there was no memory.
template <typename T>
class TileBuffer {
 public:
  TileBuffer() = default;
  explicit TileBuffer(int64_t count) : bytes_(count * static_cast<int64_t>(sizeof(T))) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data()); }

 private:
  cpu::AlignedBuffer bytes_;
};

// Rows of a task: lanes first_row .. first_row + rows - 1 of a matrix; at most the lanes of a tile.
struct TileRows {
  int64_t first = 0;
  int64_t count = 0;
};

// Calls `work(rows, scratch)` for every tile of `rows` rows, each with a scratch of `scratch_bytes`
// of its thread. Before each tile `stop` is asked (by one thread at a time; null never stops).
// Cancelled: stop said so; tiles may be missing. ResourceExhausted: no memory for a scratch.
absl::Status ForEachTile(int64_t rows, int64_t lanes, int64_t scratch_bytes, ThreadPool& pool,
                         const std::function<bool()>& stop,
                         absl::FunctionRef<void(TileRows, uint8_t*)> work);

// tile [cols, lanes] = transpose of the given rows of w [.., cols]; lanes without a row become 0.
template <typename From, typename T>
void LoadTile(const From* w, int64_t cols, TileRows rows, int64_t lanes, T* tile) {
  constexpr int64_t kStrip = 16;  // columns read from a row at a time: a cache line
  for (int64_t c0 = 0; c0 < cols; c0 += kStrip) {
    const int64_t c1 = c0 + kStrip < cols ? c0 + kStrip : cols;
    for (int64_t i = 0; i < lanes; ++i) {
      const From* row = w + (rows.first + i) * cols;
      for (int64_t c = c0; c < c1; ++c) tile[c * lanes + i] = i < rows.count ? T{row[c]} : T{0};
    }
  }
}

}  // namespace babai
