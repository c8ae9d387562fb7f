// How fast can memory be read? The limit that every decode figure stands beside.
//
//   read_bandwidth [THREADS] [GIB]     default: 2 threads, 1 GiB in all; median of 7 passes
#include <immintrin.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// One pass over `words` 32-byte words, four cache lines a turn, prefetching 4 KiB ahead.
__attribute__((target("avx2"))) int64_t Sum(const __m256i* p, size_t words) {
  __m256i acc[8] = {};
  for (size_t i = 0; i + 8 <= words; i += 8) {
    for (int j = 0; j < 8; j += 2)
      _mm_prefetch(reinterpret_cast<const char*>(p + i + j) + 4096, _MM_HINT_T0);
    for (int j = 0; j < 8; ++j) acc[j] = _mm256_add_epi64(acc[j], _mm256_load_si256(p + i + j));
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm256_add_epi64(acc[0], acc[j]);
  return _mm256_extract_epi64(acc[0], 0) + _mm256_extract_epi64(acc[0], 3);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  const double gib = argc > 2 ? std::atof(argv[2]) : 1;
  constexpr int kPasses = 7;
  const size_t bytes = static_cast<size_t>(gib * (1 << 30)) / threads / 4096 * 4096;
  if (!__builtin_cpu_supports("avx2")) {
    std::fprintf(stderr, "read_bandwidth: needs AVX2\n");
    return 1;
  }

  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> meetings;  // made, then begin and end of each pass
  std::barrier meet(threads, [&]() noexcept { meetings.push_back(Clock::now()); });
  std::vector<int64_t> sums(threads);
  std::vector<std::jthread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      auto* data = static_cast<int64_t*>(std::aligned_alloc(4096, bytes));
      if (data == nullptr) std::abort();
      for (size_t i = 0; i < bytes / sizeof(int64_t); ++i)
        data[i] = static_cast<int64_t>(i);  // touch every page here
      for (int pass = 0; pass < kPasses; ++pass) {
        meet.arrive_and_wait();
        sums[t] += Sum(reinterpret_cast<const __m256i*>(data), bytes / sizeof(__m256i));
        meet.arrive_and_wait();
      }
      std::free(data);
    });
  }
  team.clear();

  std::vector<double> rates;
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::chrono::duration<double> took = meetings[2 * pass + 1] - meetings[2 * pass];
    rates.push_back(bytes * threads / took.count() / 1e9);
  }
  std::sort(rates.begin(), rates.end());
  int64_t sum = 0;
  for (int64_t s : sums) sum += s;
  std::printf(
      "%.2f GB/s read, %d threads, %.2f GiB, median of %d passes (%.2f..%.2f; checksum %llx)\n",
      rates[kPasses / 2], threads, gib, kPasses, rates.front(), rates.back(),
      static_cast<unsigned long long>(sum));
}
