#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace babai {
namespace {

constexpr auto kSpinTime = std::chrono::microseconds(50);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Returns when `word` no longer holds `old`: spins first, then sleeps.
void AwaitChange(const std::atomic<uint32_t>& word, uint32_t old) {
  const auto give_up = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  word.wait(old, std::memory_order_acquire);
}

}  // namespace

// A round: the caller writes `task`, bumps `round`, runs its own share and waits until `arrived`
// (which only grows) has counted every worker once more.
struct ThreadPool::State {
  const absl::FunctionRef<void(int, int)>* task = nullptr;
  alignas(64) std::atomic<uint32_t> round{0};
  alignas(64) std::atomic<uint32_t> arrived{0};
  alignas(64) std::mutex callers;
  bool stopping = false;
  int threads = 1;
  std::vector<std::thread> workers;

  void Work(int index) {
    for (uint32_t seen = 0;; ++seen) {
      AwaitChange(round, seen);
      if (stopping) return;
      (*task)(index, threads);
      arrived.fetch_add(1, std::memory_order_release);
      arrived.notify_one();
    }
  }

  void Run(absl::FunctionRef<void(int, int)> fn) {
    task = &fn;
    const uint32_t before = arrived.load(std::memory_order_relaxed);
    StartRound();
    fn(0, threads);
    const uint32_t all = before + static_cast<uint32_t>(workers.size());
    for (uint32_t now = arrived.load(std::memory_order_acquire); now != all;
         now = arrived.load(std::memory_order_acquire)) {
      AwaitChange(arrived, now);
    }
  }

  void StartRound() {
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads < 1) threads = std::max(1u, std::thread::hardware_concurrency());
  state_->threads = threads;
  state_->workers.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) {
    state_->workers.emplace_back([state = state_.get(), i] { state->Work(i); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping = true;
  state_->StartRound();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::RunOnAll(absl::FunctionRef<void(int, int)> fn) {
  std::lock_guard<std::mutex> lock(state_->callers);
  state_->Run(fn);
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain,
                             absl::FunctionRef<void(int64_t, int64_t)> fn) {
  if (count <= 0) return;
  const int64_t units = (count + grain - 1) / grain;
  const int64_t parts = std::min<int64_t>(units, threads());
  if (parts == 1) return fn(0, count);
  RunOnAll([&](int index, int) {
    if (index >= parts) return;
    const int64_t begin = units * index / parts * grain;
    const int64_t end = std::min(count, units * (index + 1) / parts * grain);
    fn(begin, end);
  });
}

}  // namespace babai
