#include "server/quant/tile_loop.h"

#include <algorithm>

#include "server/reason/reason.h"

namespace babai {
namespace {

// Asks `stop` for all threads. One at a time does; the others go on meanwhile.
class StopSignal {
 public:
  explicit StopSignal(const std::function<bool()>& stop) : stop_(stop) {}

  bool Raised() {
    if (!stop_ || raised_.load(std::memory_order_relaxed)) return raised_;
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock() && stop_()) raised_ = true;
    return raised_;
  }

 private:
  const std::function<bool()>& stop_;
  std::mutex mutex_;
  std::atomic<bool> raised_ = false;
};

}  // namespace

absl::Status ForEachTile(int64_t rows, int64_t lanes, int64_t scratch_bytes, ThreadPool& pool,
                         const std::function<bool()>& stop,
                         absl::FunctionRef<void(TileRows, uint8_t*)> work) {
  StopSignal signal(stop);
  std::atomic<bool> no_memory = false;
  pool.ParallelFor(rows, lanes, [&](int64_t begin, int64_t end) {
    cpu::AlignedBuffer scratch(scratch_bytes);
    if (scratch.data() == nullptr) no_memory = true;
    for (int64_t row = begin; row < end && !no_memory && !signal.Raised(); row += lanes) {
      work({row, std::min(lanes, end - row)}, scratch.data());
    }
  });
  if (no_memory) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  "no memory for a tile of the quantizer");
  }
  if (signal.Raised()) {
    return Refuse(absl::StatusCode::kCancelled, reason::kCancelled, "", "stopped while quantizing");
  }
  return absl::OkStatus();
}

}  // namespace babai
