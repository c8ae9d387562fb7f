// From F1, the layout on disk, to the execution layout of packed_layout.h, on the device: the same
// bytes as repack.h makes on the host.
//
//   regime    at load; a stack of matrices in pieces of rows, as they arrive
//   roof      codes and scales read, a record written
#pragma once

#include <cstdint>

#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"

namespace babai::cuda {

struct RepackArgs {        // device pointers
  const uint8_t* codes;    // of rows first_row .. first_row + rows, as formats/packed_int.h has
  const uint16_t* scales;  // them: 4-byte aligned
  const uint8_t* zeros;    // null: symmetric
  PackedShape shape;       // of the whole stack
  int first_row;           // a multiple of kStripRows
  int rows;                // a multiple of kStripRows too, unless these are the last
  uint8_t* out;            // shape.bytes(); the strips of these rows are overwritten
};

cudaError_t RepackOnDevice(const RepackArgs& args, const Queue& queue);

}  // namespace babai::cuda
