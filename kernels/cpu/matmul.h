// y = x * W' (+ bias) on the CPU, for weights in execution layout, made once at load.
//
//   regimes   m <= 4 reads W at memory speed; larger m unpacks a block of W into registers once for
//             every eight tokens
//   roof      bytes() of the weights over read bandwidth; for large m the int8 (MatmulInt8) or fp32
//             (others) multiply-add rate
//   numerics  y[t][n] depends on x[t] and W alone: the same bits for any m, any place in the batch
//             and any number of threads
//   measured  bench/cpu_gemm
//
// Nothing here allocates once the weights are made.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/formats/float16.h"
#include "kernels/formats/packed_int.h"

namespace babai::cpu {

struct MatmulArgs {
  const float* x = nullptr;     // [m, k], rows ldx floats apart
  int64_t m = 0;                // >= 0
  int64_t ldx = 0;              // >= k
  const float* bias = nullptr;  // [n], or null
  float* y = nullptr;           // [m, n], rows ldy floats apart; overwritten; not aliasing x
  int64_t ldy = 0;              // >= n
  uint8_t* scratch = nullptr;   // MatmulScratchBytes(m, k) bytes, aligned to 64
};

// Scratch that each of the three multiplications below is content with. Grows with m and with k.
int64_t MatmulScratchBytes(int64_t m, int64_t k);

// F1 weights in execution layout.
//
//   codes   [n / 16][k / 64] blocks of 16 rows x 64 columns, 128 * bits bytes each, padded with 0.
//           Unpacked, a block is 16 lines of 64 bytes: byte 4r + j of line q is the code of row r,
//           column 4q + j, which is the operand order of VPDPBUSD.
//           8 bits: the lines themselves. 4 bits: byte line i holds line i in the low nibbles and
//           line i + 8 in the high ones. 2 bits: byte line i holds lines i, i + 4, i + 8, i + 12,
//           lowest bits first. 3 bits: the low two bits as a 2-bit block, then 2 byte lines of
//           high bits: bit b of byte line i belongs to line 2b + i.
//   scales  [n / 16][groups][16] fp16 bit patterns
//   zeros   [n / 16][groups][16] bytes, none when symmetric
//
// Immutable after Make(): any number of threads may read it.
class PackedIntWeights {
 public:
  // Stacks `parts` by rows (q over k over v) and repacks them. All have equal cols, group, bits and
  // symmetry. InvalidArgument: they do not, there is none, or a group is neither a multiple of 32
  // nor a whole row. ResourceExhausted: no memory.
  static absl::StatusOr<PackedIntWeights> Make(absl::Span<const PackedIntView> parts);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t group() const { return group_; }  // == cols rounded up to 32 when one group spans a row
  int bits() const { return bits_; }
  bool symmetric() const { return zeros_.size() == 0; }
  int64_t bytes() const { return codes_.size() + scales_.size() + zeros_.size(); }

  // The layout above, for kernels.
  int64_t row_blocks() const { return (rows_ + 15) / 16; }
  int64_t col_blocks() const { return (cols_ + 63) / 64; }
  int64_t groups() const { return (cols_ + group_ - 1) / group_; }
  const uint8_t* codes() const { return codes_.data(); }
  const uint16_t* scales() const { return reinterpret_cast<const uint16_t*>(scales_.data()); }
  const uint8_t* zeros() const { return zeros_.data(); }

 private:
  void Fill(absl::Span<const PackedIntView> parts);
  // Scales and zeros of row `from` of a part, which is row `to` of the stack.
  void FillMeta(const PackedIntView& part, int64_t from, int64_t to);

  int64_t rows_ = 0, cols_ = 0, group_ = 0;
  int bits_ = 0;
  AlignedBuffer codes_, scales_, zeros_;
};

// Activations rounded to int8: each 32 consecutive inputs of a token share the scale absmax / 127.
// Products are summed exactly in integers within such a group and in fp32, in order of k, between
// them, so the result has the same bits on every instruction set. Relative error of y against
// MatmulExact: about 0.5 % of its root mean square (test packed_int_matmul_test says what is held).
// A NaN or infinity in x gives a NaN or infinity in every y of that token.
void MatmulInt8(const PackedIntWeights& w, const MatmulArgs& args, ThreadPool& pool);

// Activations stay fp32, weights are decoded to fp32: the definition, for evaluation. Sums run over
// k in order, each step one fused multiply-add (scalar: multiply, then add).
void MatmulExact(const PackedIntWeights& w, const MatmulArgs& args, ThreadPool& pool);

// A row-major dense matrix of a checkpoint.
struct DenseView {
  const void* data = nullptr;  // [rows, cols], aligned to its element
  FloatType type = FloatType::kF32;
  int64_t rows = 0, cols = 0;
};

// Dense weights in execution layout: [n / 16][k][16] of the source's own type, padded with 0.
// Immutable after Make().
class DenseWeights {
 public:
  // Stacks `parts` by rows. InvalidArgument: none, a size not positive, or unequal cols or types.
  // ResourceExhausted: no memory.
  static absl::StatusOr<DenseWeights> Make(absl::Span<const DenseView> parts);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  FloatType type() const { return type_; }
  int64_t bytes() const { return data_.size(); }
  int64_t panels() const { return (rows_ + 15) / 16; }
  const uint8_t* data() const { return data_.data(); }

 private:
  int64_t rows_ = 0, cols_ = 0;
  FloatType type_ = FloatType::kF32;
  AlignedBuffer data_;
};

// fp32 activations and accumulation, in the order of MatmulExact.
void MatmulDense(const DenseWeights& w, const MatmulArgs& args, ThreadPool& pool);

}  // namespace babai::cpu
