#include "server/engine/memory_budget.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace babai {

MemoryShare::~MemoryShare() {
  if (budget_ == nullptr) return;
  std::lock_guard<std::mutex> lock(budget_->mutex_);
  budget_->taken_ -= bytes_;
}

int64_t MemoryBudget::free() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return limit_ - taken_;
}

bool MemoryBudget::Take(int64_t bytes, MemoryShare* share) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > limit_ - taken_) return false;
    taken_ += bytes;
  }
  *share = MemoryShare(this, bytes);
  return true;
}

int64_t DefaultMemoryLimit() {
  int64_t bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  int64_t group_limit = 0;
  std::ifstream file("/sys/fs/cgroup/memory.max");  // "max" where there is no limit
  if (file >> group_limit && group_limit > 0) bytes = std::min(bytes, group_limit);
  return bytes / 5 * 4;
}

}  // namespace babai
