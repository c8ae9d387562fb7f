// Physical KV blocks of a model: who holds which, counted. A block is returned when the last holder
// lets go of it, so that several sequences may share the blocks of a common prefix.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace babai {

class KvBlock;

// Not thread-safe: it belongs to the scheduler's thread. Must outlive its blocks.
class KvBlockPool {
 public:
  explicit KvBlockPool(int64_t blocks);
  int64_t size() const { return holders_.size(); }
  int64_t free() const { return free_.size(); }
  // A block nobody holds. Requires free() > 0.
  KvBlock Take();

 private:
  friend class KvBlock;
  std::vector<int32_t> holders_;  // [size] how many hold a block
  std::vector<int32_t> free_;     // a stack: warm blocks first
};

// One holder's share of a block; the destructor lets go.
class KvBlock {
 public:
  KvBlock(KvBlock&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  KvBlock& operator=(KvBlock&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  ~KvBlock();
  KvBlock Share() const;  // a further holder of the same block
  int32_t id() const { return id_; }

 private:
  friend class KvBlockPool;
  KvBlock(KvBlockPool* pool, int32_t id);
  KvBlockPool* pool_;
  int32_t id_;
};

}  // namespace babai
