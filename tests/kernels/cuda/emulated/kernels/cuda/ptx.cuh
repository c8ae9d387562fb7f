// Stands in for kernels/cuda/ptx.cuh, and for what CUDA C++ has beyond C++, when a kernel is
// compiled for simt.h's device. As much of it as the kernels of a step use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "simt.h"

// --- CUDA C++

#undef __device__
#undef __forceinline__
#undef __global__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (babai::emulated::current->thread)
#define blockIdx (babai::emulated::current->block)

using std::isfinite;
using std::max;
using std::min;

inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline float __expf(float v) { return std::exp(v); }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selectors) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> (selectors >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* p, unsigned v) { return std::exchange(*p, *p + v); }
[[noreturn]] inline void __trap() {
  std::fprintf(stderr, "emulated device: trap\n");
  std::abort();
}

namespace babai::emulated {
enum Meeting : int { kShuffle = 1, kShuffleXor, kAny, kSyncWarp, kMatrix, kProduct };
}

template <typename T>
T __shfl_sync(unsigned, T v, int lane) {
  using namespace babai::emulated;
  return std::bit_cast<T>(MeetWarp(kShuffle, {std::bit_cast<uint32_t>(v)})[lane % 32][0]);
}
template <typename T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  using namespace babai::emulated;
  const int lane = current->lane ^ mask;
  return std::bit_cast<T>(MeetWarp(kShuffleXor, {std::bit_cast<uint32_t>(v)})[lane][0]);
}
inline bool __any_sync(unsigned, bool v) {
  using namespace babai::emulated;
  const Shown& shown = MeetWarp(kAny, {v});
  return std::any_of(std::begin(shown), std::end(shown), [](const auto& w) { return w[0] != 0; });
}
inline void __syncwarp() { babai::emulated::MeetWarp(babai::emulated::kSyncWarp, {}); }
inline void __syncthreads() { babai::emulated::MeetBlock(); }

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*)(Params...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
#define cudaLaunchKernelEx BabaiLaunchKernel  // which CUDA's header has too, for any arguments
template <typename... Params, typename... Args>
cudaError_t BabaiLaunchKernel(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                              const Args&... args) {
  return babai::emulated::Enqueue(
      [config = *config, kernel, args = std::tuple<Params...>(args...)] {
        babai::emulated::Run(config, [&] { std::apply(kernel, args); });
      },
      static_cast<int64_t>(config->dynamicSmemBytes));
}

// --- kernels/cuda/ptx.cuh

namespace babai::cuda {

#define SHARED_MEMORY(name) uint8_t* const name = SharedMemory()
#define SHARED_VARIABLE(name, ...) \
  using name##Type = __VA_ARGS__;  \
  name##Type& name = *static_cast<name##Type*>(emulated::OfBlock(#name, sizeof(name##Type)))
inline uint8_t* SharedMemory() { return emulated::current->of_block->shared.data(); }
inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - SharedMemory());
}
template <typename T>
T* AtShared(uint32_t address) {
  return reinterpret_cast<T*>(SharedMemory() + address);
}

template <typename T>
T FromFloat(float v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else {
    return __float2bfloat16_rn(v);
  }
}
inline uint32_t Opaque(uint32_t v) { return v; }

// A barrier's two words: arrivals that are missing, and how many there are a phase with the phase
// in the lowest bit.
inline void BarrierInit(uint32_t bar, uint32_t arrivals) {
  AtShared<uint32_t>(bar)[0] = arrivals, AtShared<uint32_t>(bar)[1] = arrivals * 2;
}
inline void BarrierInitFence() {}
inline void BarrierArrive(uint32_t bar) {
  uint32_t* const words = AtShared<uint32_t>(bar);
  if (--words[0] == 0) words[0] = words[1] / 2, words[1] ^= 1;
}
inline void BarrierWait(uint32_t bar, uint32_t parity) {
  while ((AtShared<uint32_t>(bar)[1] & 1) == parity) emulated::Yield();
}

inline void CopyAsync16(uint32_t to, const void* from) { emulated::StartCopy(to, from, 16); }
inline void CopyAsync16OrZero(uint32_t to, const void* from, bool valid) {
  emulated::StartCopy(to, from, valid ? 16 : 0);
}
inline void CopyAsync16If(uint32_t to, const void* from, bool wanted) {
  if (wanted) emulated::StartCopy(to, from, 16);
}
inline void CopyAsyncCommit() { emulated::CommitCopies(); }
template <int kGroups>
void CopyAsyncWait() {
  emulated::WaitForCopies(kGroups);
}
inline void CopyAsyncArrive(uint32_t bar) {
  emulated::LandCopies();
  BarrierArrive(bar);
}

inline void AddToMemory(float* to, float v) { *to += v; }
// What others write may come only when they have a turn.
inline uint4 LoadRelaxed4(const void* from) {
  emulated::Yield();
  const auto* const words = static_cast<const volatile uint32_t*>(from);
  return {words[0], words[1], words[2], words[3]};
}
inline void StoreRelaxed4(void* to, const uint4& v) { std::memcpy(to, &v, sizeof(v)); }

inline void PrefetchToL2(const void*) {}
inline void WaitForPrecedingKernel() {}
inline void LetNextKernelStart() {}

inline void LoadMatrix4(uint32_t (&r)[4], uint32_t address) {
  const emulated::Shown& rows = emulated::MeetWarp(emulated::kMatrix, {address});
  const int lane = emulated::current->lane;
  for (int i = 0; i < 4; ++i) {
    r[i] = AtShared<uint32_t>(rows[i * 8 + lane / 4][0])[lane % 4];
  }
}
inline void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t address) {
  const emulated::Shown& rows = emulated::MeetWarp(emulated::kMatrix, {address});
  const int lane = emulated::current->lane;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int row) {
      return AtShared<uint16_t>(rows[i * 8 + row][0])[lane / 4];
    };
    r[i] = element(lane % 4 * 2) | uint32_t{element(lane % 4 * 2 + 1)} << 16;
  }
}

template <typename T>
float HalfOf(uint32_t pair, int which) {
  return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(pair >> 16 * which)));
}

template <typename T>
void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const emulated::Shown& lanes =
      emulated::MeetWarp(emulated::kProduct, {a[0], a[1], a[2], a[3], b0, b1});
  const int row = emulated::current->lane / 4, col = emulated::current->lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2;  // row + 8
    double sum = 0;
    for (int pair = 0; pair < 8; ++pair) {
      const auto& w = lanes[row * 4 + pair % 4];
      const auto& x = lanes[(col + i % 2) * 4 + pair % 4];
      for (int k = 0; k < 2; ++k) {
        sum += double{HalfOf<T>(w[pair / 4 * 2 + lower], k)} * HalfOf<T>(x[4 + pair / 4], k);
      }
    }
    d[i] += static_cast<float>(sum);
  }
}

}  // namespace babai::cuda
