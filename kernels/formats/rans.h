// Range variant of asymmetric numeral systems, as format F6 uses it: Duda, arXiv:1311.2540.
// Internal to kernels/formats.
//
// A state x lies in [2^16, 2^32). Coding a symbol of frequency f of 4096 that starts at s is
// x -> (x / f << 12) + x % f + s; before it, x gives up its low 16 bits as a word if the result
// would not fit. Decoding undoes this, last symbol first; so the encoder walks backwards and the
// decoder forwards. Several states share one stream of words; each coded symbol names its state
// ("lane"). The encoder starts from 2^16 in every lane, which is what a decoder must end with.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace babai::entropy {

inline constexpr int kLanes = 4;
inline constexpr uint32_t kLowestState = 1u << 16;

class RansEncoder {
 public:
  // Frequencies > 0 of 4096.
  void Put(int lane, uint32_t start, uint32_t frequency) {
    uint32_t& x = states_[lane];
    if (x >= uint64_t{frequency} << 20) Spill(x);
    x = (x / frequency << 12) + x % frequency + start;
  }

  // value < 2^bits, bits <= 16.
  void PutRaw(int lane, uint32_t value, int bits) {
    uint32_t& x = states_[lane];
    if (uint64_t{x} >> (32 - bits) != 0) Spill(x);
    x = x << bits | value;
  }

  // Appends the states of the first `lanes` lanes and the words, in the decoder's order.
  void Finish(int lanes, std::vector<uint8_t>& out) const {
    for (int i = 0; i < lanes; ++i) Append(states_[i], out);
    for (auto word = words_.rbegin(); word != words_.rend(); ++word) Append(*word, out);
  }

  int64_t words() const { return static_cast<int64_t>(words_.size()); }

 private:
  void Spill(uint32_t& x) {
    words_.push_back(static_cast<uint16_t>(x));
    x >>= 16;
  }

  template <class T>
  static void Append(T value, std::vector<uint8_t>& out) {
    for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<uint8_t>(value >> 8 * i));
  }

  uint32_t states_[kLanes] = {kLowestState, kLowestState, kLowestState, kLowestState};
  std::vector<uint16_t> words_;  // last one first
};

// The decoder's side of the words.
struct RansWords {
  const uint8_t* next;
  const uint8_t* end;
  bool overrun = false;  // more was wanted than is there; zeros were given

  int64_t bytes_left() const { return end - next; }

  // Brings a state back into its range after a symbol. kChecked: the words may end.
  template <bool kChecked>
  void Refill(uint32_t& x) {
    if constexpr (kChecked) {
      if (x >= kLowestState) return;
      x = x << 16 | Word();
    } else {
      uint16_t word;
      std::memcpy(&word, next, 2);
      const bool low = x < kLowestState;
      x = low ? x << 16 | word : x;
      next += low ? 2 : 0;
    }
  }

  uint32_t Word() {
    if (bytes_left() < 2) {
      overrun = true;
      return 0;
    }
    const uint32_t word = next[0] | uint32_t{next[1]} << 8;
    next += 2;
    return word;
  }

  // A lane's first state.
  uint32_t State() {
    const uint32_t low = Word();
    return low | Word() << 16;
  }
};

// Decodes a raw value of `bits` <= 16 bits.
template <bool kChecked>
uint32_t TakeRaw(uint32_t& x, int bits, RansWords& words) {
  const uint32_t value = x & ((1u << bits) - 1);
  x >>= bits;
  words.Refill<kChecked>(x);
  return value;
}

}  // namespace babai::entropy
