// The integer product of a block of 16 rows with a few tokens, for any instruction set S. Included
// by kernels_*.cc alone.
#pragma once

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {

// Decode steps are bound by memory: ask for the codes this far ahead.
inline constexpr int kPrefetchBytes = 4096;

template <class S>
struct Int8Tile {
  static constexpr int kParts = kLanes / S::kIntLanes;

  template <int kBits>
  static void PrefetchBlock(const uint8_t* block) {
    for (int i = 0; i < 128 * kBits; i += 64) __builtin_prefetch(block + kPrefetchBytes + i);
  }

  // Adds one activation group's products, scaled by the activations, to sums[T].
  template <int kBits, bool kAsym, int T>
  static void AddGroup(const uint8_t* block, int half, int lane, const typename S::W& zeros,
                       const Int8Acts& x, int64_t entry, typename S::V (&sums)[T]) {
    typename S::W w[8];
    if (half == 0) {
      S::template Unpack<kBits, 0>(block, lane, w);
    } else {
      S::template Unpack<kBits, 1>(block, lane, w);
    }
#pragma GCC unroll 8  // or the sums live in memory
    for (int t = 0; t < T; ++t) {
      const auto init = S::template Init<kBits, kAsym>(zeros, x.neg_sums[entry + t]);
      const auto dot = S::template Dot<kBits>(w, x.q + (entry + t) * kActGroup, init);
      sums[t] = S::FmaV(S::ToV(dot), S::SetV(x.scales[entry + t]), sums[t]);
    }
  }

  template <int T>
  static void StoreTile(const typename S::V (&acc)[T][kParts], int64_t row, int64_t token,
                        const Output& out) {
    const int64_t count = out.n - row < kLanes ? out.n - row : kLanes;
    for (int t = 0; t < T; ++t) {
      float lanes[kLanes];
      for (int p = 0; p < kParts; ++p) S::StoreV(lanes + p * S::kIntLanes, acc[t][p]);
      typename S::F y = S::Load(lanes);
      if (out.bias != nullptr) {
        y = S::Add(y, S::LoadN(out.bias + row, static_cast<int>(count)));
      }
      S::StoreN(out.y + (token + t) * out.ldy + row, y, static_cast<int>(count));
    }
  }

  template <int kBits, bool kAsym, int T>
  static void Tokens(const PackedLayout& w, const Int8Acts& x, int64_t row_block, int64_t token,
                     const Output& out) {
    constexpr int64_t kBytes = 128 * kBits;
    const int64_t groups = w.groups();
    const int64_t act_groups = (w.cols + kActGroup - 1) / kActGroup;
    const int64_t act_per_group = (w.group + kActGroup - 1) / kActGroup;
    const uint8_t* codes = w.codes + row_block * w.col_blocks() * kBytes;
    const int64_t meta = row_block * groups * kLanes;

    typename S::V acc[T][kParts];
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < kParts; ++p) acc[t][p] = S::ZeroV();
    }
    for (int64_t g = 0, begin = 0; g < groups; ++g, begin += act_per_group) {
      const int64_t end = begin + act_per_group < act_groups ? begin + act_per_group : act_groups;
      for (int p = 0; p < kParts; ++p) {
        const int lane = p * S::kIntLanes;
        const int64_t at = meta + g * kLanes + lane;
        typename S::W zeros{};
        if constexpr (kAsym) zeros = S::template LoadZeros<kBits>(w.zeros + at);
        typename S::V sums[T];
        for (int t = 0; t < T; ++t) sums[t] = S::ZeroV();
        for (int64_t a = begin; a < end; ++a) {
          const uint8_t* block = codes + (a >> 1) * kBytes;
          if ((a & 1) == 0 && p == 0) PrefetchBlock<kBits>(block);
          AddGroup<kBits, kAsym, T>(block, a & 1, lane, zeros, x, a * x.m + token, sums);
        }
        const auto scales = S::LoadScales(w.scales + at);
        for (int t = 0; t < T; ++t) acc[t][p] = S::FmaV(sums[t], scales, acc[t][p]);
      }
    }
    StoreTile<T>(acc, row_block * kLanes, token, out);
  }

  template <int kBits, bool kAsym>
  static void Block(const PackedLayout& w, const Int8Acts& x, int64_t block, int64_t t0, int64_t t1,
                    const Output& out) {
    int64_t t = t0;
    if constexpr (S::kIntTokens >= 8) {
      for (; t + 8 <= t1; t += 8) Tokens<kBits, kAsym, 8>(w, x, block, t, out);
    }
    for (; t + 4 <= t1; t += 4) Tokens<kBits, kAsym, 4>(w, x, block, t, out);
    if (t + 2 <= t1) Tokens<kBits, kAsym, 2>(w, x, block, t, out), t += 2;
    if (t < t1) Tokens<kBits, kAsym, 1>(w, x, block, t, out);
  }

  template <int kBits>
  static void AnyZeros(const PackedLayout& w, const Int8Acts& x, int64_t block, int64_t t0,
                       int64_t t1, const Output& out) {
    if (w.zeros != nullptr) {
      Block<kBits, true>(w, x, block, t0, t1, out);
    } else {
      Block<kBits, false>(w, x, block, t0, t1, out);
    }
  }

  static void Run(const PackedLayout& w, const Int8Acts& x, int64_t block, int64_t t0, int64_t t1,
                  const Output& out) {
    switch (w.bits) {
      case 2:
        return AnyZeros<2>(w, x, block, t0, t1, out);
      case 3:
        return AnyZeros<3>(w, x, block, t0, t1, out);
      case 4:
        return AnyZeros<4>(w, x, block, t0, t1, out);
      default:
        return AnyZeros<8>(w, x, block, t0, t1, out);
    }
  }

  static void Quantize(const float* x, int64_t ldx, int64_t k, int64_t t0, int64_t t1,
                       const Int8Acts& out) {
    for (int64_t t = t0; t < t1; ++t) {
      const float* row = x + t * ldx;
      for (int64_t c = 0, entry = t; c < k; c += kActGroup, entry += out.m) {
        float padded[kActGroup] = {};
        const float* group = row + c;
        if (k - c < kActGroup) {
          for (int64_t i = 0; i < k - c; ++i) padded[i] = group[i];
          group = padded;
        }
        out.neg_sums[entry] =
            S::QuantizeGroup(group, out.q + entry * kActGroup, out.scales + entry);
      }
    }
  }
};

}  // namespace babai::cpu
