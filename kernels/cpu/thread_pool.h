// A fixed set of threads that meet at a spinning barrier: made for a decode step, which passes
// hundreds of barriers in a few milliseconds. Threads that wait longer than about 50 us sleep.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"

namespace babai {

class ThreadPool {
 public:
  // `threads` >= 1, the caller's own thread included. 0 asks for one per hardware thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls fn(begin, end) on contiguous parts of [0, count) whose borders are multiples of `grain`,
  // at most one part a thread, and returns when all are done. The split depends only on count,
  // grain and threads(). fn must not throw. Calls from several threads are serialised; fn must not
  // call ParallelFor of the same pool.
  void ParallelFor(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> fn);

  // Calls fn(index, threads) once on every thread of the pool.
  void RunOnAll(absl::FunctionRef<void(int, int)> fn);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace babai
