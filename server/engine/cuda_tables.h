// Weights that index tables (kernels/formats/packed_table.h) on the device, as
// kernels/cuda/table_gemm.h takes them: 4 bits a weight, also where 2 or 3 are stored.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/dense_gemm.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/queue.h"
#include "kernels/cuda/table_gemm.h"
#include "kernels/formats/packed_int.h"
#include "kernels/formats/packed_table.h"

namespace babai {

// The shape it has there; nothing: the kernels do not take its group or columns.
std::optional<cuda::PackedShape> TableShapeOf(const PackedTableView& w);

// What is sent there. `pairs` looks at its other members: to be moved, not copied.
struct TableCodes {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> ones;    // scales, where none are stored
  std::vector<uint16_t> tables;  // [rows, kTableValues] fp16 bit patterns
  PackedIntView pairs;           // 8-bit codes in half the columns
};
// Requires TableShapeOf().
absl::StatusOr<TableCodes> MakeTableCodes(const PackedTableView& w);

constexpr int64_t TableBytes(int64_t rows) { return rows * cuda::kTableValues * 2; }

// So many tokens by kernels that look up, kTableTokens at a time (docs/perf/cuda_gemm.md).
constexpr int kTablePassTokens = 3 * cuda::kTableTokens;

// Device memory for weights that TableProduct() decodes, whatever the matrix.
constexpr int64_t kDecodedBytes = int64_t{64} << 20;

struct TableProductArgs {  // device pointers
  const void* x;           // [m, k] of dtype
  void* y;                 // [m, n] of dtype; overwritten
  cuda::TableWeights weights;
  int m;
  cuda::Dtype dtype;
};
// y = x * W^T: beyond kTablePassTokens with rows of W that are decoded to 16 bits first, as many at
// a time as `decoded` (kDecodedBytes) has room for; only then are these two touched. Enqueues.
absl::Status TableProduct(const TableProductArgs& args, cuda::DenseGemm* dense,
                          const cuda::Buffer& decoded, const cuda::Queue& queue);

}  // namespace babai
