#include "kernels/cpu/matmul.h"

#include <algorithm>

#include "kernels/cpu/kernel_table.h"

namespace babai::cpu {
namespace {

constexpr int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t CeilDiv(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Quantized activations of this many bytes stay in the second-level cache while row blocks pass.
constexpr int64_t kCachedActBytes = 256 << 10;
// Below this many tokens the caller quantizes alone: cheaper than a meeting of threads.
constexpr int64_t kSerialQuantizeTokens = 8;

PackedLayout LayoutOf(const PackedIntWeights& w) {
  return {w.codes(), w.scales(), w.zeros(), w.rows(), w.cols(), w.group(), w.bits()};
}

Output OutputOf(const MatmulArgs& args, int64_t n) { return {args.y, args.ldy, args.bias, n}; }

Int8Acts Int8Scratch(uint8_t* scratch, int64_t m, int64_t k) {
  const int64_t entries = m * CeilDiv(k, kActGroup);
  auto* q = reinterpret_cast<int8_t*>(scratch);
  auto* scales = reinterpret_cast<float*>(scratch + entries * kActGroup);
  return {q, scales, reinterpret_cast<int32_t*>(scales + entries), m};
}

void Quantize(const MatmulArgs& args, int64_t k, const Int8Acts& acts, ThreadPool& pool) {
  const auto rows = [&](int64_t begin, int64_t end) {
    Kernels().quantize(args.x, args.ldx, k, begin, end, acts);
  };
  if (args.m <= kSerialQuantizeTokens) return rows(0, args.m);
  pool.ParallelFor(args.m, 1, rows);
}

// [ceil(m / 8)][k][8], see PackedActs. Missing tokens of the last tile stay unset and unread.
PackedActs PackTokens(const MatmulArgs& args, int64_t k, ThreadPool& pool) {
  float* packed = reinterpret_cast<float*>(args.scratch);
  const auto tokens = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = args.x + t * args.ldx;
      float* to = packed + t / kTileTokens * kTileTokens * k + t % kTileTokens;
      for (int64_t c = 0; c < k; ++c) to[c * kTileTokens] = row[c];
    }
  };
  if (args.m <= kTileTokens) {
    tokens(0, args.m);
  } else {
    pool.ParallelFor(args.m, kTileTokens, tokens);
  }
  return {packed, args.m, k};
}

}  // namespace

int64_t MatmulScratchBytes(int64_t m, int64_t k) {
  // fp32 tiles are the larger: 4 bytes a value against 1.25.
  return RoundUp(m, kTileTokens) * RoundUp(k, kActGroup) * 4;
}

void MatmulInt8(const PackedIntWeights& w, const MatmulArgs& args, ThreadPool& pool) {
  if (args.m == 0) return;
  const Int8Acts acts = Int8Scratch(args.scratch, args.m, w.cols());
  Quantize(args, w.cols(), acts, pool);
  const PackedLayout layout = LayoutOf(w);
  const Output out = OutputOf(args, w.rows());
  // Tokens are cut into chunks of equal size that fit the cache; a chunk meets all row blocks.
  const int64_t most = std::max<int64_t>(kTileTokens, kCachedActBytes / w.cols());
  const int64_t chunk = RoundUp(CeilDiv(args.m, CeilDiv(args.m, most)), kTileTokens);
  const int64_t blocks = w.row_blocks();
  pool.ParallelFor(blocks * CeilDiv(args.m, chunk), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t0 = i / blocks * chunk;
      Kernels().int8_block(layout, acts, i % blocks, t0, std::min(args.m, t0 + chunk), out);
    }
  });
}

void MatmulExact(const PackedIntWeights& w, const MatmulArgs& args, ThreadPool& pool) {
  if (args.m == 0) return;
  const PackedActs acts = PackTokens(args, w.cols(), pool);
  const PackedLayout layout = LayoutOf(w);
  const Output out = OutputOf(args, w.rows());
  pool.ParallelFor(w.row_blocks(), 1, [&](int64_t begin, int64_t end) {
    Kernels().exact_panels(layout, acts, begin, end, out);
  });
}

void MatmulDense(const DenseWeights& w, const MatmulArgs& args, ThreadPool& pool) {
  if (args.m == 0) return;
  const PackedActs acts = PackTokens(args, w.cols(), pool);
  const Output out = OutputOf(args, w.rows());
  pool.ParallelFor(w.panels(), 1, [&](int64_t begin, int64_t end) {
    Kernels().dense_panels(w.data(), w.type(), acts, begin, end, out);
  });
}

}  // namespace babai::cpu
