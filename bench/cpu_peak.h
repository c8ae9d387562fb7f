// Multiply-adds a second that one core can do at all: independent chains in registers, no memory.
#pragma once

#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/isa.h"

namespace babai::cpu {

// Operations a call of the loops below, per iteration: 12 chains.
inline constexpr int kChains = 12;
inline constexpr int64_t kPeakSteps = 1'000'000;

#if defined(__x86_64__)
[[gnu::target("avx512f,avx512vnni"), gnu::noinline]] inline int32_t Int8Avx512() {
  __m512i acc[kChains], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  for (auto& chain : acc) {
    chain = _mm512_set1_epi8(0);
    asm volatile("" : "+v"(chain));  // or equal chains become one
  }
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_dpbusd_epi32(acc[c], a, b);
  }
  for (int c = 1; c < kChains; ++c) acc[0] = _mm512_add_epi32(acc[0], acc[c]);
  return _mm512_cvtsi512_si32(acc[0]);
}

[[gnu::target("avx512f"), gnu::noinline]] inline float Fp32Avx512() {
  __m512 acc[kChains], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (auto& chain : acc) {
    chain = _mm512_set1_ps(0);
    asm volatile("" : "+v"(chain));  // or equal chains become one
  }
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_fmadd_ps(a, b, acc[c]);
  }
  for (int c = 1; c < kChains; ++c) acc[0] = _mm512_add_ps(acc[0], acc[c]);
  return _mm512_cvtss_f32(acc[0]);
}

// Bytes are multiplied into 16 bits and added there: the best that AVX2 can do before it widens.
[[gnu::target("avx2"), gnu::noinline]] inline int32_t Int8Avx2() {
  __m256i acc[kChains], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
  for (auto& chain : acc) {
    chain = _mm256_set1_epi8(0);
    asm volatile("" : "+x"(chain));  // or equal chains become one
  }
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      asm volatile("" : "+x"(a));  // or the product is computed once
      acc[c] = _mm256_add_epi16(acc[c], _mm256_maddubs_epi16(a, b));
    }
  }
  for (int c = 1; c < kChains; ++c) acc[0] = _mm256_add_epi16(acc[0], acc[c]);
  return _mm256_cvtsi256_si32(acc[0]);
}

[[gnu::target("avx2,fma"), gnu::noinline]] inline float Fp32Avx2() {
  __m256 acc[kChains], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (auto& chain : acc) {
    chain = _mm256_set1_ps(0);
    asm volatile("" : "+x"(chain));  // or equal chains become one
  }
  for (int64_t i = 0; i < kPeakSteps; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm256_fmadd_ps(a, b, acc[c]);
  }
  for (int c = 1; c < kChains; ++c) acc[0] = _mm256_add_ps(acc[0], acc[c]);
  return _mm256_cvtss_f32(acc[0]);
}
#endif

struct PeakLoops {
  int32_t (*int8)() = nullptr;
  float (*fp32)() = nullptr;
  int int8_macs = 0, fp32_macs = 0;  // of one instruction
};

// Null functions for the scalar set, whose peak is nobody's limit.
inline PeakLoops LoopsOf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Vnni) return {Int8Avx512, Fp32Avx512, 64, 16};
  if (isa == Isa::kAvx2) return {Int8Avx2, Fp32Avx2, 32, 8};
#endif
  return {};
}

}  // namespace babai::cpu
