// Evaluations as operations: a bounded queue, one worker, results kept in memory for a while.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include "babai/v1/evaluation.pb.h"
#include "server/engine/engine.h"
#include "server/rpc/operation_source.h"

namespace babai {

// Thread-safe. The engine must outlive it.
class Evaluations final : public OperationSource {
 public:
  using OnChange = std::function<void(std::string_view id)>;  // called without locks held

  Evaluations(Engine* engine, OnChange on_change);
  ~Evaluations() override;  // cancels what runs and waits for it

  // Queues an evaluation whose model exists. Exactly one of `text` and `request.tokens` is set; the
  // text is tokenized when its turn comes. ResourceExhausted QUEUE_FULL.
  absl::StatusOr<Operation> Submit(EvaluateRequest request, std::string text);

  bool Owns(std::string_view id) const override { return id.starts_with("eval-"); }
  absl::StatusOr<Operation> Get(std::string_view id) const override;
  absl::StatusOr<std::vector<Operation>> List(int64_t page_size, std::string_view page_token,
                                              std::string* next_page_token) const override;
  absl::Status Cancel(std::string_view id) override;
  absl::Status Delete(std::string_view id) override;

 private:
  struct Entry;
  using EntryPtr = std::shared_ptr<Entry>;

  void Run();
  void Evaluate(Entry& entry);
  absl::StatusOr<EntryPtr> Find(std::string_view id) const;  // mutex_ held
  Operation ToOperation(const Entry& entry) const;           // mutex_ held
  void DropOldest();                                         // mutex_ held

  Engine* engine_;
  OnChange on_change_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<int64_t, EntryPtr> entries_;  // by number, which grows
  std::deque<EntryPtr> waiting_;
  int64_t next_ = 1;
  std::atomic<bool> stopping_ = false;
  std::thread worker_;
};

}  // namespace babai
