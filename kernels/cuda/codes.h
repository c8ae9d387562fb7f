// Between the feature-major matrices of the sweep and the row-major ones of everything else.
//
//   roof      each is read and written once
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

// out[c, first_row + r] = w[r, c]: rows of one linear into the feature-major matrix of a stack.
struct StackRowsArgs {  // device pointers
  const float* w;       // [rows, k]
  float* out;           // [k, n]
  int rows, k, n, first_row;
};
cudaError_t StackRows(const StackRowsArgs& args, const Queue& queue);

// out[r, c] = values[c, r].
struct TurnHalvesArgs {    // device pointers
  const uint16_t* values;  // [k, n]
  uint16_t* out;           // [n, k]
  int k, n;
};
cudaError_t TurnHalves(const TurnHalvesArgs& args, const Queue& queue);

// Row r of out is values[.., r] as the dense little-endian stream of formats/packed_int.h: `bits`
// bits each, row_bytes = ceil(k * bits / 8) or, for codes, ceil(k * bits / 32) * 4. Unused bits are
// 0.
struct PackStreamsArgs {  // device pointers
  const uint8_t* values;  // [k, n], each below 2^bits
  uint8_t* out;           // [n, row_bytes]
  int k, n, bits;
  int64_t row_bytes;
};
cudaError_t PackStreams(const PackStreamsArgs& args, const Queue& queue);

// counts[code] += how often it is in columns of rows [first_row, first_row + rows).
struct CountCodesArgs {        // device pointers
  const uint8_t* codes;        // [k, n]
  unsigned long long* counts;  // [256]
  int k, n, first_row, rows;
};
cudaError_t CountCodes(const CountCodesArgs& args, const Queue& queue);

// out = scale * (code - zero), rounded once.
struct DecodeCodesArgs {   // device pointers
  const uint8_t* codes;    // [n, row_bytes], packed
  const uint16_t* scales;  // [k / group, n] fp16
  const uint8_t* zeros;    // [k / group, n]
  void* out;               // [n, k] of dtype
  int n, k, group, bits;   // k a multiple of 8
  int64_t row_bytes;
  Dtype dtype;
};
cudaError_t DecodeCodes(const DecodeCodesArgs& args, const Queue& queue);

}  // namespace babai::cuda
