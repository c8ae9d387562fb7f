#include "server/model/dequantize.h"

#include <cstring>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load<uint16_t>(p)); }

// Byte j of `qs` holds weight j in its low nibble and weight j + 16 in its high one.
void UnpackNibbles(const uint8_t* qs, int (&q)[32]) {
  for (int j = 0; j < 16; ++j) {
    q[j] = qs[j] & 15;
    q[j + 16] = qs[j] >> 4;
  }
}

// Bit e of `high` is bit 4 of weight e.
void AddFifthBit(uint32_t high, int (&q)[32]) {
  for (int e = 0; e < 32; ++e) q[e] |= static_cast<int>(high >> e & 1) << 4;
}

// The eight 6-bit scales and minima of Q4_K and Q5_K, packed in 12 bytes.
struct ScaleMin {
  int scale, min;
};
ScaleMin UnpackScaleMin(const uint8_t* s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4};
}

// The sixteen 6-bit scales of Q3_K, stored plus 32: four low bits in nibbles of bytes 0..7, two
// high bits in bytes 8..11.
int UnpackQ3Scale(const uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  const int high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
  return (low | high << 4) - 32;
}

}  // namespace

void DecodeF32(const uint8_t* stored, int64_t blocks, float* out) {
  std::memcpy(out, stored, static_cast<size_t>(blocks) * sizeof(float));
}

void DecodeF16(const uint8_t* stored, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = LoadHalf(stored + 2 * i);
}

void DecodeBF16(const uint8_t* stored, int64_t blocks, float* out) {
  for (int64_t i = 0; i < blocks; ++i) out[i] = Bf16ToFloat(Load<uint16_t>(stored + 2 * i));
}

void DecodeQ4_0(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 18, out += 32) {
    const float d = LoadHalf(stored);
    int q[32];
    UnpackNibbles(stored + 2, q);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(q[e] - 8);
  }
}

void DecodeQ4_1(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 20, out += 32) {
    const float d = LoadHalf(stored), m = LoadHalf(stored + 2);
    int q[32];
    UnpackNibbles(stored + 4, q);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(q[e]) + m;
  }
}

void DecodeQ5_0(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 22, out += 32) {
    const float d = LoadHalf(stored);
    int q[32];
    UnpackNibbles(stored + 6, q);
    AddFifthBit(Load<uint32_t>(stored + 2), q);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(q[e] - 16);
  }
}

void DecodeQ5_1(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 24, out += 32) {
    const float d = LoadHalf(stored), m = LoadHalf(stored + 2);
    int q[32];
    UnpackNibbles(stored + 8, q);
    AddFifthBit(Load<uint32_t>(stored + 4), q);
    for (int e = 0; e < 32; ++e) out[e] = d * static_cast<float>(q[e]) + m;
  }
}

void DecodeQ8_0(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 34, out += 32) {
    const float d = LoadHalf(stored);
    for (int e = 0; e < 32; ++e) {
      out[e] = d * static_cast<float>(static_cast<int8_t>(stored[2 + e]));
    }
  }
}

// Q2_K and Q3_K walk alike: halves of 128 weights in 32 bytes; each of the four bit pairs of those
// bytes is 32 weights, two groups of 16.
void DecodeQ2_K(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 84) {
    const uint8_t* scales = stored;
    const float d = LoadHalf(stored + 80), dmin = LoadHalf(stored + 82);
    for (int group = 0; group < 16; ++group, out += 16) {
      const uint8_t* qs = stored + 16 + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      const float scale = d * static_cast<float>(scales[group] & 15);
      const float min = dmin * static_cast<float>(scales[group] >> 4);
      for (int e = 0; e < 16; ++e) out[e] = scale * static_cast<float>(qs[e] >> shift & 3) - min;
    }
  }
}

void DecodeQ3_K(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 110) {
    const float d = LoadHalf(stored + 108);
    for (int group = 0; group < 16; ++group, out += 16) {
      const uint8_t* high = stored + group % 2 * 16;
      const uint8_t* qs = stored + 32 + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      const float scale = d * static_cast<float>(UnpackQ3Scale(stored + 96, group));
      for (int e = 0; e < 16; ++e) {
        const int q = (qs[e] >> shift & 3) | (high[e] >> group / 2 & 1) << 2;
        out[e] = scale * static_cast<float>(q - 4);
      }
    }
  }
}

// 64 weights in 32 bytes: low nibbles are the first 32, high nibbles the next.
void DecodeQ4_K(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 144) {
    const float d = LoadHalf(stored), dmin = LoadHalf(stored + 2);
    for (int group = 0; group < 8; ++group, out += 32) {
      const ScaleMin s = UnpackScaleMin(stored + 4, group);
      const float scale = d * static_cast<float>(s.scale), min = dmin * static_cast<float>(s.min);
      const uint8_t* qs = stored + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int e = 0; e < 32; ++e) out[e] = scale * static_cast<float>(qs[e] >> shift & 15) - min;
    }
  }
}

void DecodeQ5_K(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 176) {
    const float d = LoadHalf(stored), dmin = LoadHalf(stored + 2);
    const uint8_t* high = stored + 16;
    for (int group = 0; group < 8; ++group, out += 32) {
      const ScaleMin s = UnpackScaleMin(stored + 4, group);
      const float scale = d * static_cast<float>(s.scale), min = dmin * static_cast<float>(s.min);
      const uint8_t* qs = stored + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int e = 0; e < 32; ++e) {
        const int q = (qs[e] >> shift & 15) | (high[e] >> group & 1) << 4;
        out[e] = scale * static_cast<float>(q) - min;
      }
    }
  }
}

// Halves of 128 weights: 64 bytes of low nibbles, 32 bytes of bit pairs. Of the four runs of 32
// weights, runs 0 and 1 are low nibbles of bytes 0..31 and 32..63, runs 2 and 3 their high nibbles.
void DecodeQ6_K(const uint8_t* stored, int64_t blocks, float* out) {
  for (; blocks > 0; --blocks, stored += 210) {
    const float d = LoadHalf(stored + 208);
    for (int group = 0; group < 16; ++group, out += 16) {
      const int half = group / 8, run = group % 8 / 2, part = group % 2 * 16;
      const uint8_t* low = stored + half * 64 + run % 2 * 32 + part;
      const uint8_t* high = stored + 128 + half * 32 + part;
      const float scale = d * static_cast<float>(static_cast<int8_t>(stored[192 + group]));
      for (int e = 0; e < 16; ++e) {
        const int q = (low[e] >> run / 2 * 4 & 15) | (high[e] >> run * 2 & 3) << 4;
        out[e] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace babai
