// What stands around a packed matrix B on the device (kernels/formats/packed_linear.h): rotations,
// factors of the columns and sparse values, each a kernel beside B's product.
//
//   y = R_out' (B + S) (factors * (R_in x))
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/sparse.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/packed_layout.h"
#include "kernels/cuda/queue.h"
#include "kernels/formats/rotation.h"
#include "server/engine/cuda_loader.h"

namespace babai {

// Memory in which a runner's products keep what surroundings make of x: of all, one at a time.
struct CudaScratch {
  cuda::Buffer turned, transposed;
  cuda::Buffer decoded;  // kDecodedBytes of cuda_tables.h, where it is needed

  struct Needs {
    int64_t turned_cols = 0, transposed_cols = 0;  // the most columns of either; 0: not needed

    void Include(const Needs& other) {
      turned_cols = std::max(turned_cols, other.turned_cols);
      transposed_cols = std::max(transposed_cols, other.transposed_cols);
    }
  };
  static int64_t TurnedBytes(const Needs& needs, int64_t tokens);
  static int64_t TransposedBytes(const Needs& needs, int64_t tokens);
};

// Immutable once made.
class CudaSurroundings {
 public:
  // Of one matrix, or of a stack of matrices by rows, which then has one rotation of inputs, no
  // factors and no rotation of outputs.
  struct Parts {
    Rotation in, out;
    absl::Span<const float> factors;                // [cols], or empty: ones
    std::vector<const cpu::SparseWeights*> sparse;  // of each matrix, its rows filled or none
    std::vector<int64_t> rows;                      // of each matrix
    int64_t cols = 0;
  };

  CudaSurroundings() = default;  // nothing
  // There once the loader has finished. InvalidArgument: more than 2^31 sparse values.
  // ResourceExhausted OUT_OF_MEMORY.
  static absl::StatusOr<CudaSurroundings> Load(const Parts& parts, CudaLoader& loader);

  // Whether the kernels take them.
  static bool Takes(const Rotation& in, const Rotation& out, int64_t rows, int64_t cols);
  // Device memory of one matrix's.
  static int64_t Bytes(const Rotation& in, const Rotation& out, bool factors,
                       int64_t sparse_entries, int64_t rows, int64_t cols);

  bool none() const { return bytes() == 0; }
  int64_t bytes() const;
  CudaScratch::Needs needs() const;

  // What B multiplies: x [m, cols] of dtype, or what it became in scratch. Enqueues.
  absl::StatusOr<const void*> Before(const void* x, int m, cuda::Dtype dtype,
                                     const CudaScratch& scratch, const cuda::Queue& queue) const;
  // y [m, rows] of dtype, which holds B's product with `x`, what Before() gave. Enqueues.
  absl::Status After(const void* x, void* y, int m, cuda::Dtype dtype, const CudaScratch& scratch,
                     const cuda::Queue& queue) const;

 private:
  int64_t rows_ = 0, cols_ = 0;
  int64_t in_block_ = 1, out_block_ = 1;
  cuda::Buffer in_scales_, factors_, out_scales_;  // fp32; without bytes: ones
  cuda::Buffer row_begin_, columns_, values_;      // kernels/cuda/sparse_add.h; or without bytes
};

}  // namespace babai
