#include "server/engine/kv_blocks.h"

namespace babai {

KvBlockPool::KvBlockPool(int64_t blocks) : holders_(blocks, 0) {
  free_.reserve(blocks);
  for (int64_t id = blocks - 1; id >= 0; --id) free_.push_back(id);
}

KvBlock KvBlockPool::Take() {
  const int32_t id = free_.back();
  free_.pop_back();
  return KvBlock(this, id);
}

KvBlock::KvBlock(KvBlockPool* pool, int32_t id) : pool_(pool), id_(id) { ++pool_->holders_[id_]; }

KvBlock::~KvBlock() {
  if (pool_ != nullptr && --pool_->holders_[id_] == 0) pool_->free_.push_back(id_);
}

KvBlock KvBlock::Share() const { return KvBlock(pool_, id_); }

}  // namespace babai
