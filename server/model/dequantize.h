// Stored weights to fp32. Layouts as ggml's ggml-common.h defines them; little-endian, no
// alignment. `blocks` counts blocks (elements, for plain types). Every product below is exact in
// fp32 (an 11-bit scale times at most 12 bits of integers), so only the final sum of the *_1 and K
// types rounds.
//
//   type  weights bytes  layout                                       weight
//   Q4_0     32     18   d f16, qs[16]                                d (q - 8)
//   Q4_1     32     20   d m f16, qs[16]                              d q + m
//   Q5_0     32     22   d f16, qh u32, qs[16]                        d (q - 16)
//   Q5_1     32     24   d m f16, qh u32, qs[16]                      d q + m
//   Q8_0     32     34   d f16, qs int8[32]                           d q
//   Q2_K    256     84   scales[16], qs[64], d dmin f16               d sc q - dmin mn
//   Q3_K    256    110   hmask[32], qs[64], scales[12], d f16         d sc q
//   Q4_K    256    144   d dmin f16, scales[12], qs[128]              d sc q - dmin mn
//   Q5_K    256    176   d dmin f16, scales[12], qh[32], qs[128]      d sc q - dmin mn
//   Q6_K    256    210   ql[128], qh[64], scales int8[16], d f16      d sc (q - 32)
#pragma once

#include <cstdint>

namespace babai {

void DecodeF32(const uint8_t* stored, int64_t blocks, float* out);
void DecodeF16(const uint8_t* stored, int64_t blocks, float* out);
void DecodeBF16(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ4_0(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ4_1(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ5_0(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ5_1(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ8_0(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ2_K(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ3_K(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ4_K(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ5_K(const uint8_t* stored, int64_t blocks, float* out);
void DecodeQ6_K(const uint8_t* stored, int64_t blocks, float* out);

}  // namespace babai
