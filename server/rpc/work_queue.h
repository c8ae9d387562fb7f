// A few threads for work that a gRPC callback must not do itself: loading a model, tokenizing,
// reading a manifest. Bounded, so that a flood of calls is refused instead of piling up.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace babai {

// Thread-safe.
class WorkQueue {
 public:
  WorkQueue(int threads, size_t max_waiting);
  ~WorkQueue();  // runs what was accepted, then joins
  WorkQueue(const WorkQueue&) = delete;

  // False: max_waiting pieces of work wait already; `work` was not taken. `work` must not throw.
  [[nodiscard]] bool Submit(std::function<void()> work);

 private:
  void Run();

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace babai
