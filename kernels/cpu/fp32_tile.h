// fp32 products of panels of 16 outputs with tiles of tokens, for any instruction set S. Every
// output is one chain of multiply-adds in order of k, whatever the tile it is computed in: that is
// what makes results independent of the batch. Included by kernels_*.cc alone.
#pragma once

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {

template <class S, int T, int P>
struct Accumulators {
  typename S::F at[T][P];
};

// acc[t][p] += sum over i < k of x[t * kTokenStride + i * kStep] * w[p][i * w_step .. + 15].
template <class S, int T, int P, int kTokenStride, int kStep, class W>
inline __attribute__((always_inline)) void MultiplyAdd(const W* const* w, int64_t w_step,
                                                       const float* x, int64_t k,
                                                       Accumulators<S, T, P>& acc) {
  for (int64_t i = 0; i < k; ++i) {
    typename S::F lanes[P];
    for (int p = 0; p < P; ++p) lanes[p] = S::Load(w[p] + i * w_step);
    for (int t = 0; t < T; ++t) {
      const typename S::F value = S::Set1(x[t * kTokenStride + i * kStep]);
      for (int p = 0; p < P; ++p) acc.at[t][p] = S::Fma(value, lanes[p], acc.at[t][p]);
    }
  }
}

// How a tile finds the value of token t at step i: x[t * kTokenStride + i * kStep].
struct PackedTokens {
  static constexpr int kTokenStride = 1;
  static constexpr int kStep = kTileTokens;
};

// Tokens in the layout of the panels themselves.
struct PanelTokens {
  static constexpr int kTokenStride = 1;
  static constexpr int kStep = kLanes;
};

template <class S>
struct Fp32Tile {
  // Columns decoded at a time: two panels of them are 64 KiB, which the second-level cache holds.
  static constexpr int64_t kColumns = 512;
  static constexpr int kMaxPanels = 4;

  // A part of the sum for up to 8 tokens and up to 4 panels.
  struct Part {
    const float* x;
    int64_t k;
    int64_t w_step;    // elements between a panel's rows
    bool first, last;  // of the parts of the same outputs
    int64_t token, panel;
  };

  template <class X, int T, int P, class W>
  static void Tile(const W* const* w, const Part& part, int lane, const Output& out) {
    Accumulators<S, T, P> acc;
    const int64_t column = part.panel * kLanes;
    float* y = out.y + (part.token + lane) * out.ldy + column;
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < P; ++p) {
        acc.at[t][p] = part.first ? S::Zero() : LoadSome(y + t * out.ldy, p, column, out);
      }
    }
    MultiplyAdd<S, T, P, X::kTokenStride, X::kStep>(w, part.w_step, part.x + lane * X::kTokenStride,
                                                    part.k, acc);
    for (int t = 0; t < T; ++t) {
      for (int p = 0; p < P; ++p) {
        typename S::F sum = acc.at[t][p];
        if (part.last && out.bias != nullptr) {
          sum = S::Add(sum, LoadSome(out.bias + column, p, column, out));
        }
        StoreSome(y + t * out.ldy, p, column, sum, out);
      }
    }
  }

  // All tokens of a packed tile (at most 8), in register tiles of 8, 4, 2 and 1.
  template <class X, int P, class W>
  static void Tokens(const W* const* w, const Part& part, int tokens, const Output& out) {
    int t = 0;
    if constexpr (S::kTileRows >= 8 && P <= 2) {
      if (tokens == 8) return Tile<X, 8, P>(w, part, 0, out);
    }
    for (; t + 4 <= tokens; t += 4) Tile<X, 4, P>(w, part, t, out);
    if (t + 2 <= tokens) Tile<X, 2, P>(w, part, t, out), t += 2;
    if (t < tokens) Tile<X, 1, P>(w, part, t, out);
  }

  // Up to `count` panels; returns how many were done.
  template <class X, class W>
  static int Panels(const W* const* w, int count, const Part& part, int tokens, const Output& out) {
    if constexpr (S::kTilePanels >= 2) {
      if (count >= 4 && tokens <= 4) return Tokens<X, 4>(w, part, tokens, out), 4;
      if (count >= 2) return Tokens<X, 2>(w, part, tokens, out), 2;
    } else {
      if (count >= 4 && tokens == 1) return Tile<X, 1, 4>(w, part, 0, out), 4;
      if (count >= 2 && tokens <= 2) return Tokens<X, 2>(w, part, tokens, out), 2;
    }
    return Tokens<X, 1>(w, part, tokens, out), 1;
  }

  template <class X, class W>
  static void AllPanels(const W* const* w, int count, Part part, int tokens, const Output& out) {
    for (int done = 0; done < count;) {
      const int did = Panels<X>(w + done, count - done, part, tokens, out);
      part.panel += did;
      done += did;
    }
  }

  // Every token against `count` panels that lie in memory, columns [c0, c0 + columns).
  template <class W>
  static void AllTokens(const W* const* w, int count, const PackedActs& x, int64_t c0,
                        int64_t columns, int64_t panel, const Output& out) {
    for (int64_t token = 0; token < x.m; token += kTileTokens) {
      const int tokens = static_cast<int>(x.m - token < kTileTokens ? x.m - token : kTileTokens);
      const Part part = {x.x + token * x.k + c0 * kTileTokens,
                         columns,
                         kLanes,
                         c0 == 0,
                         c0 + columns == x.k,
                         token,
                         panel};
      AllPanels<PackedTokens>(w, count, part, tokens, out);
    }
  }

  // Panels that can be read as they are stored.
  template <class W>
  static void Stored(const W* w, const PackedActs& x, int64_t p0, int64_t p1, const Output& out) {
    for (int64_t panel = p0; panel < p1; panel += kMaxPanels) {
      const int count = static_cast<int>(p1 - panel < kMaxPanels ? p1 - panel : kMaxPanels);
      const W* panels[kMaxPanels];
      for (int p = 0; p < count; ++p) panels[p] = w + (panel + p) * x.k * kLanes;
      AllTokens(panels, count, x, 0, x.k, panel, out);
    }
  }

  // Panels that are decoded first, two at a time; decode(panel, c0, columns, out [columns][16]).
  template <class Decode>
  static void Decoded(Decode decode, const PackedActs& x, int64_t p0, int64_t p1,
                      const Output& out) {
    alignas(64) float scratch[2][kColumns * kLanes];
    const float* const panels[2] = {scratch[0], scratch[1]};
    for (int64_t panel = p0; panel < p1; panel += 2) {
      const int count = p1 - panel < 2 ? 1 : 2;
      for (int64_t c0 = 0; c0 < x.k; c0 += kColumns) {
        const int64_t columns = x.k - c0 < kColumns ? x.k - c0 : kColumns;
        for (int p = 0; p < count; ++p) decode(panel + p, c0, columns, scratch[p]);
        AllTokens(panels, count, x, c0, columns, panel, out);
      }
    }
  }

  // --- dense weights

  template <class W>
  static void DenseAs(const W* w, const PackedActs& x, int64_t p0, int64_t p1, const Output& out) {
    if (x.m <= kTileTokens) return Stored(w, x, p0, p1, out);
    const auto widen = [&](int64_t panel, int64_t c0, int64_t columns, float* to) {
      const W* from = w + (panel * x.k + c0) * kLanes;
      for (int64_t i = 0; i < columns * kLanes; i += kLanes) S::Store(to + i, S::Load(from + i));
    };
    Decoded(widen, x, p0, p1, out);
  }

  static void Dense(const void* w, FloatType type, const PackedActs& x, int64_t p0, int64_t p1,
                    const Output& out) {
    switch (type) {
      case FloatType::kF32:
        return Stored(static_cast<const float*>(w), x, p0, p1, out);
      case FloatType::kF16:
        return DenseAs(static_cast<const Half*>(w), x, p0, p1, out);
      case FloatType::kBf16:
        return DenseAs(static_cast<const Bf16*>(w), x, p0, p1, out);
    }
  }

  // --- columns against columns

  // y [rows][16 count] = a' b over the steps of a [ceil(rows / 16)][steps][16] and
  // b [count][steps][16]; count <= kMaxPanels.
  static void Products(const float* a, int64_t rows, const float* b, int count, int64_t steps,
                       float* y, int64_t ldy) {
    const float* panels[kMaxPanels];
    for (int p = 0; p < count; ++p) panels[p] = b + p * steps * kLanes;
    const Output out = {y, ldy, nullptr, count * kLanes};
    for (int64_t row = 0; row < rows; row += kTileTokens) {
      const int tokens = static_cast<int>(rows - row < kTileTokens ? rows - row : kTileTokens);
      const float* x = a + row / kLanes * steps * kLanes + row % kLanes;
      AllPanels<PanelTokens>(panels, count, Part{x, steps, kLanes, true, true, row, 0}, tokens,
                             out);
    }
  }

  // --- packed integers, decoded exactly

  // Columns [32 * a, 32 * a + 32) of a panel into to [32][16].
  template <int kBits>
  static void DecodeHalfBlock(const PackedLayout& w, int64_t panel, int64_t a, float* to) {
    const uint8_t* block = w.codes + (panel * w.col_blocks() + a / 2) * (128 * kBits);
    const int64_t meta = (panel * w.groups() + a * kActGroup / w.group) * kLanes;
    const typename S::F scale = S::Load(reinterpret_cast<const Half*>(w.scales + meta));
    const typename S::F zero =
        w.zeros == nullptr ? S::Set1(1 << (kBits - 1)) : S::BytesToF(w.zeros + meta);
    alignas(64) uint8_t lines[8][64];
    UnpackLines<kBits>(block, static_cast<int>(a % 2), lines);
    for (int q = 0; q < 8; ++q) {
      for (int j = 0; j < 4; ++j) {
        const typename S::F steps = S::Sub(S::ByteLanes(lines[q], j), zero);
        S::Store(to + (4 * q + j) * kLanes, S::Mul(scale, steps));
      }
    }
  }

  // Lines [8 * half, 8 * half + 8) of a block, as matmul.h defines them.
  template <int kBits>
  static void UnpackLines(const uint8_t* block, int half, uint8_t (&lines)[8][64]) {
    for (int i = 0; i < 8; ++i) {
      const int line = 8 * half + i;
      for (int j = 0; j < 64; ++j) {
        if constexpr (kBits == 8) {
          lines[i][j] = block[64 * line + j];
        } else if constexpr (kBits == 4) {
          lines[i][j] = (block[64 * i + j] >> (4 * half)) & 15;
        } else {
          lines[i][j] = (block[64 * (i % 4) + j] >> (line / 4 * 2)) & 3;
          if constexpr (kBits == 3) {
            lines[i][j] |= ((block[256 + 64 * (i % 2) + j] >> (line / 2)) & 1) << 2;
          }
        }
      }
    }
  }

  template <int kBits>
  static void ExactBits(const PackedLayout& w, const PackedActs& x, int64_t p0, int64_t p1,
                        const Output& out) {
    const auto decode = [&](int64_t panel, int64_t c0, int64_t columns, float* to) {
      for (int64_t c = 0; c < columns; c += kActGroup) {
        DecodeHalfBlock<kBits>(w, panel, (c0 + c) / kActGroup, to + c * kLanes);
      }
    };
    Decoded(decode, x, p0, p1, out);
  }

  static void Exact(const PackedLayout& w, const PackedActs& x, int64_t p0, int64_t p1,
                    const Output& out) {
    switch (w.bits) {
      case 2:
        return ExactBits<2>(w, x, p0, p1, out);
      case 3:
        return ExactBits<3>(w, x, p0, p1, out);
      case 4:
        return ExactBits<4>(w, x, p0, p1, out);
      default:
        return ExactBits<8>(w, x, p0, p1, out);
    }
  }

 private:
  static int Existing(int p, int64_t column, const Output& out) {
    const int64_t left = out.n - column - p * kLanes;
    return static_cast<int>(left < kLanes ? left : kLanes);
  }
  static typename S::F LoadSome(const float* row, int p, int64_t column, const Output& out) {
    return S::LoadN(row + p * kLanes, Existing(p, column, out));
  }
  static void StoreSome(float* row, int p, int64_t column, typename S::F v, const Output& out) {
    S::StoreN(row + p * kLanes, v, Existing(p, column, out));
  }
};

}  // namespace babai::cpu
