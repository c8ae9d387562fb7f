#include "kernels/cuda/embed.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kThreads = 256;

// `bits` bits from bit `at` of a little-endian stream.
__device__ __forceinline__ int BitsAt(const uint8_t* stream, int64_t at, int bits) {
  const int64_t byte = at / 8;
  const int shift = at % 8;
  int word = stream[byte];
  if (shift + bits > 8) word |= stream[byte + 1] << 8;
  return word >> shift & ((1 << bits) - 1);
}

// One weight of a packed matrix, as kernels/formats/packed_int.h defines it.
__device__ float PackedWeight(const EmbeddingTable& table, int64_t row, int col, int hidden) {
  const int bits = table.bits;
  const int groups = (hidden + table.group - 1) / table.group, group = col / table.group;
  const int64_t row_bytes = (int64_t{hidden} * bits + 31) / 32 * 4;
  const int code = BitsAt(static_cast<const uint8_t*>(table.values) + row * row_bytes,
                          int64_t{col} * bits, bits);
  int zero = 1 << (bits - 1);
  if (table.zeros != nullptr) {
    const int64_t zero_row_bytes = (int64_t{groups} * bits + 7) / 8;
    zero = BitsAt(table.zeros + row * zero_row_bytes, int64_t{group} * bits, bits);
  }
  return __half2float(__ushort_as_half(table.scales[row * groups + group])) *
         static_cast<float>(code - zero);
}

__device__ float Weight(const EmbeddingTable& table, int64_t row, int col, int hidden) {
  const int64_t at = row * hidden + col;
  switch (table.kind) {
    case EmbeddingTable::Kind::kFp16:
      return ToFloat(static_cast<const __half*>(table.values)[at]);
    case EmbeddingTable::Kind::kBf16:
      return ToFloat(static_cast<const __nv_bfloat16*>(table.values)[at]);
    case EmbeddingTable::Kind::kFp32:
      return static_cast<const float*>(table.values)[at];
    default:
      return PackedWeight(table, row, col, hidden);
  }
}

__global__ void EmbedKernel(EmbedArgs a) {
  StartStep();
  const int t = blockIdx.x;
  const int64_t row = a.tokens[t];
  const float* add =
      a.position_rows == nullptr ? nullptr : a.position_rows + int64_t{a.positions[t]} * a.hidden;
  for (int c = threadIdx.x; c < a.hidden; c += kThreads) {
    float v = Weight(a.table, row, c, a.hidden) * a.scale;
    if (add != nullptr) v += add[c];
    a.x[int64_t{t} * a.hidden + c] = v;
  }
}

}  // namespace

cudaError_t Embed(const EmbedArgs& args, const Queue& queue) {
  return Launch(EmbedKernel, dim3(args.count), kThreads, 0, queue, args);
}

}  // namespace babai::cuda
