// Bytes that loaded models and evaluations share.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>

namespace babai {

class MemoryBudget;

// Bytes taken from a budget until it is dropped. The budget must outlive it.
class MemoryShare {
 public:
  MemoryShare() = default;
  MemoryShare(MemoryShare&& other) noexcept { *this = std::move(other); }
  MemoryShare& operator=(MemoryShare&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MemoryShare();
  int64_t bytes() const { return bytes_; }

 private:
  friend class MemoryBudget;
  MemoryShare(MemoryBudget* budget, int64_t bytes) : budget_(budget), bytes_(bytes) {}
  MemoryBudget* budget_ = nullptr;
  int64_t bytes_ = 0;
};

// Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t limit) : limit_(limit) {}
  int64_t limit() const { return limit_; }
  int64_t free() const;
  // False, and nothing taken, if `bytes` are not free.
  bool Take(int64_t bytes, MemoryShare* share);

 private:
  friend class MemoryShare;
  const int64_t limit_;
  mutable std::mutex mutex_;
  int64_t taken_ = 0;
};

// 80 % of what this process may use: the machine's memory or its control group's limit.
int64_t DefaultMemoryLimit();

}  // namespace babai
