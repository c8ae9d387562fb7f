#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/codes.h"
#include "kernels/cuda/launch.cuh"

namespace babai::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;

// out[c * out_stride + r] = in[r * in_stride + c] for r < rows, c < cols, tile by tile.
template <typename T>
__global__ void TurnKernel(const T* in, int64_t in_stride, T* out, int64_t out_stride, int rows,
                           int cols) {
  __shared__ T tile[kTile][kTile + 1];
  const int row0 = blockIdx.x * kTile, col0 = blockIdx.y * kTile;
  const int x = threadIdx.x % kTile, y0 = threadIdx.x / kTile;
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    if (row0 + y < rows && col0 + x < cols) tile[y][x] = in[(row0 + y) * in_stride + col0 + x];
  }
  __syncthreads();
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    if (row0 + x < rows && col0 + y < cols) out[(col0 + y) * out_stride + row0 + x] = tile[x][y];
  }
}

template <typename T>
cudaError_t Turn(const T* in, int64_t in_stride, T* out, int64_t out_stride, int rows, int cols,
                 const Queue& queue) {
  const dim3 grid((rows + kTile - 1) / kTile, (cols + kTile - 1) / kTile);
  TurnKernel<<<grid, kThreads, 0, queue.stream>>>(in, in_stride, out, out_stride, rows, cols);
  return cudaGetLastError();
}

constexpr int kValues = 32;  // of a thread: `bits` whole words

__global__ void PackStreamsKernel(PackStreamsArgs a) {
  const int row = blockIdx.x * kThreads + threadIdx.x, first = blockIdx.y * kValues;
  if (row >= a.n) return;
  uint8_t* out = a.out + row * a.row_bytes + int64_t{first} * a.bits / 8;
  const int64_t room = a.row_bytes - int64_t{first} * a.bits / 8;
  uint64_t pending = 0;
  int held = 0, written = 0;
  for (int i = 0; i < kValues; ++i) {
    const int c = first + i;
    const uint64_t value = c < a.k ? a.values[int64_t{c} * a.n + row] : 0;
    pending |= value << held;
    held += a.bits;
    if (held < 32) continue;
    if (a.row_bytes % 4 == 0) {
      if (written < room)
        *reinterpret_cast<uint32_t*>(out + written) = static_cast<uint32_t>(pending);
    } else {
      for (int b = 0; b < 4 && written + b < room; ++b) {
        out[written + b] = static_cast<uint8_t>(pending >> (8 * b));
      }
    }
    written += 4, held -= 32, pending >>= 32;
  }
}

__global__ void CountCodesKernel(CountCodesArgs a) {
  __shared__ unsigned counts[256];
  for (int i = threadIdx.x; i < 256; i += kThreads) counts[i] = 0;
  __syncthreads();
  for (int c = blockIdx.x; c < a.k; c += gridDim.x) {
    const uint8_t* codes = a.codes + int64_t{c} * a.n + a.first_row;
    for (int r = threadIdx.x; r < a.rows; r += kThreads) atomicAdd(&counts[codes[r]], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += kThreads) {
    if (counts[i] != 0) atomicAdd(&a.counts[i], static_cast<unsigned long long>(counts[i]));
  }
}

constexpr int kAtOnce = 8;  // codes of a thread: `bits` whole bytes

template <typename T>
struct alignas(16) Eight {
  T v[kAtOnce];
};

template <typename T>
__global__ void DecodeCodesKernel(DecodeCodesArgs a) {
  const int col = (blockIdx.x * kThreads + threadIdx.x) * kAtOnce;
  const int64_t row = blockIdx.y;
  if (col >= a.k) return;
  const uint8_t* from = a.codes + row * a.row_bytes + int64_t{col} * a.bits / 8;
  uint64_t codes = 0;
  for (int b = 0; b < a.bits; ++b) codes |= uint64_t{from[b]} << (8 * b);
  Eight<T> out;
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const int64_t at = int64_t{(col + i) / a.group} * a.n + row;
    const int code = static_cast<int>(codes >> (i * a.bits)) & ((1 << a.bits) - 1);
    out.v[i] = FromFloat<T>(__half2float(__ushort_as_half(a.scales[at])) *
                            static_cast<float>(code - static_cast<int>(a.zeros[at])));
  }
  *reinterpret_cast<Eight<T>*>(static_cast<T*>(a.out) + row * a.k + col) = out;
}

}  // namespace

cudaError_t StackRows(const StackRowsArgs& a, const Queue& queue) {
  return Turn(a.w, a.k, a.out + a.first_row, a.n, a.rows, a.k, queue);
}

cudaError_t TurnHalves(const TurnHalvesArgs& a, const Queue& queue) {
  return Turn(a.values, a.n, a.out, a.k, a.k, a.n, queue);
}

cudaError_t PackStreams(const PackStreamsArgs& args, const Queue& queue) {
  const dim3 grid((args.n + kThreads - 1) / kThreads, (args.k + kValues - 1) / kValues);
  PackStreamsKernel<<<grid, kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t CountCodes(const CountCodesArgs& args, const Queue& queue) {
  constexpr int kMostBlocks = 1024;
  const int blocks = std::min(args.k, kMostBlocks);
  CountCodesKernel<<<blocks, kThreads, 0, queue.stream>>>(args);
  return cudaGetLastError();
}

cudaError_t DecodeCodes(const DecodeCodesArgs& args, const Queue& queue) {
  constexpr int kBlockCols = kThreads * kAtOnce;
  const dim3 grid((args.k + kBlockCols - 1) / kBlockCols, args.n);
  if (args.dtype == Dtype::kFp16) {
    DecodeCodesKernel<__half><<<grid, kThreads, 0, queue.stream>>>(args);
  } else {
    DecodeCodesKernel<__nv_bfloat16><<<grid, kThreads, 0, queue.stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace babai::cuda
