#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace babai {
namespace {

TEST(ThreadPoolTest, EveryElementIsVisitedOnceInAlignedParts) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (int64_t count : {0, 1, 2, 7, 64, 1001}) {
      for (int64_t grain : {1, 3, 16, 2000}) {
        std::vector<std::atomic<int>> visits(count);
        std::atomic<int> parts{0};
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end % grain == 0 || end == count);
          EXPECT_LT(begin, end);
          ++parts;
          for (int64_t i = begin; i < end; ++i) ++visits[i];
        });
        EXPECT_LE(parts, threads);
        for (const auto& v : visits) ASSERT_EQ(v, 1);
      }
    }
  }
}

TEST(ThreadPoolTest, RunOnAllReachesEveryThread) {
  ThreadPool pool(4);
  std::mutex mutex;
  std::set<int> indices;
  std::set<std::thread::id> ids;
  pool.RunOnAll([&](int index, int threads) {
    std::lock_guard<std::mutex> lock(mutex);
    EXPECT_EQ(threads, 4);
    indices.insert(index);
    ids.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(indices, (std::set<int>{0, 1, 2, 3}));
  EXPECT_EQ(ids.size(), 4u);
}

// Long enough between rounds for the workers to sleep: they must wake up again.
TEST(ThreadPoolTest, SleepingWorkersWake) {
  ThreadPool pool(3);
  std::atomic<int> runs{0};
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    pool.RunOnAll([&](int, int) { ++runs; });
  }
  EXPECT_EQ(runs, 15);
}

TEST(ThreadPoolTest, ManyRoundsSeeEachOthersWrites) {
  ThreadPool pool(2);
  std::vector<int64_t> even(64, 0), odd(64, 0);  // plain: the barrier alone orders the accesses
  for (int round = 0; round < 1000; ++round) {
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) odd[i] = even[63 - i] + 1;
    });
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) even[i] = odd[63 - i] + 1;
    });
  }
  for (int64_t value : even) EXPECT_EQ(value, 2000);
}

TEST(ThreadPoolTest, CallersOnSeveralThreadsAreSerialised) {
  ThreadPool pool(2);
  std::atomic<int> inside{0}, most{0}, total{0};
  const auto caller = [&] {
    for (int i = 0; i < 200; ++i) {
      pool.RunOnAll([&](int index, int) {
        if (index == 0) {
          const int now = ++inside;
          if (now > most) most = now;
          ++total;
          --inside;
        }
      });
    }
  };
  std::thread a(caller), b(caller);
  a.join();
  b.join();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(total, 400);
}

TEST(ThreadPoolTest, ZeroAsksForTheHardwares) {
  ThreadPool pool(0);
  EXPECT_EQ(pool.threads(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
}

}  // namespace
}  // namespace babai
