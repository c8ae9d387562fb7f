// What each instruction set provides, and the plain structs passed to it. Internal to kernels/cpu.
//
// The files kernels_*.cc are compiled for more than the baseline processor, so nothing that a
// linker may share with other files (inline functions, templates of the standard library) may be
// instantiated there: they see plain structs, intrinsics and the templates of the tile headers,
// whose names carry the instruction set.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/formats/float16.h"

namespace babai::cpu {

inline constexpr int kLanes = 16;      // rows of a weight block, positions of a key panel
inline constexpr int kActGroup = 32;   // inputs that share an activation scale
inline constexpr int kTileTokens = 8;  // tokens packed side by side for the fp32 products
inline constexpr int kBlockCols = 64;  // columns of a packed integer block

// Stored 16-bit floats, told apart for overloads.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

// PackedIntWeights, bare.
struct PackedLayout {
  const uint8_t* codes;
  const uint16_t* scales;
  const uint8_t* zeros;  // null when symmetric
  int64_t rows, cols, group;
  int bits;

  int64_t groups() const { return (cols + group - 1) / group; }
  int64_t col_blocks() const { return (cols + kBlockCols - 1) / kBlockCols; }
};

// Activations as MatmulInt8 quantizes them; entry [a][t] is group a of token t.
struct Int8Acts {
  int8_t* q;          // [act_groups][m][32]
  float* scales;      // [act_groups][m]
  int32_t* neg_sums;  // [act_groups][m], minus the sum of the 32 values
  int64_t m;
};

// Where a product goes.
struct Output {
  float* y;
  int64_t ldy;
  const float* bias;  // or null
  int64_t n;          // columns that exist; panels may reach beyond
};

// fp32 activations packed for the tiles: [ceil(m / 8)][k][8].
struct PackedActs {
  const float* x;
  int64_t m, k;
};

// Query rows handled together: pairs (query, head of the group), query-major.
struct AttentionRows {
  const SequenceRows* sequence;
  int64_t first_q_row;  // row in q of the sequence's first query
  int kv_head;
  int64_t first_pair, pairs;  // pairs <= kMaxPairs
  int64_t first_tile, tiles;  // key tiles to visit
};
inline constexpr int kMaxPairs = 32;
inline constexpr int kKeyTile = 128;
inline constexpr int kMaxHeadDim = 256;

struct KernelTable {
  // Tokens [t0, t1) of x.
  void (*quantize)(const float* x, int64_t ldx, int64_t k, int64_t t0, int64_t t1,
                   const Int8Acts& out);
  // Row block `block` for tokens [t0, t1).
  void (*int8_block)(const PackedLayout& w, const Int8Acts& x, int64_t block, int64_t t0,
                     int64_t t1, const Output& out);
  // Panels [p0, p1) of 16 outputs, every token.
  void (*exact_panels)(const PackedLayout& w, const PackedActs& x, int64_t p0, int64_t p1,
                       const Output& out);
  void (*dense_panels)(const void* w, FloatType type, const PackedActs& x, int64_t p0, int64_t p1,
                       const Output& out);
  // y [rows][16 count] = a' b for panels [.][steps][16] of columns; count <= 4.
  void (*panel_products)(const float* a, int64_t rows, const float* b, int count, int64_t steps,
                         float* y, int64_t ldy);

  // `partial` null: writes the output rows. Otherwise writes, for each tile and pair, the maximum,
  // the sum and padded_dim() values: [tiles][pairs][padded_dim + 2].
  void (*attend)(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                 float* partial);
  // Merges what `attend` left, in order, and writes the output rows.
  void (*merge)(const PagedKv& kv, const AttentionArgs& args, const AttentionRows& rows,
                const float* partial);
  void (*to_half)(const float* x, uint16_t* out, int64_t n);

  void (*rms_norm)(const float* x, float* y, int64_t n, const float* weight, float offset,
                   float eps);
  void (*layer_norm)(const float* x, float* y, int64_t n, const float* weight, const float* bias,
                     float eps);
  void (*rope)(float* head, const float* cos, const float* sin, int64_t half);
  void (*activate)(Activation f, const float* x, const float* up, float* y,
                   int64_t n);  // up or null
  void (*add)(float* x, const float* y, int64_t n);
  // Sum of exp((x - shift) * scale); also stores the terms when out is not null.
  double (*exp_sum)(const float* x, int64_t n, float shift, float scale, float* out);
};

const KernelTable& ScalarKernels();
const KernelTable& Avx2Kernels();
const KernelTable& Avx512Kernels();

// Those of ActiveIsa().
const KernelTable& Kernels();

}  // namespace babai::cpu
