// A linear of the runner: weights of one or several stacked matrices (q over k over v, gate over
// up) in the CPU's execution layout.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/runner.h"
#include "server/model/checkpoint.h"
#include "server/store/packed_model.h"

namespace babai {

// Immutable once made; any number of threads may use it.
class Linear {
 public:
  Linear() = default;
  // Stacks the named matrices (which must be there) by rows. Neighbours of one format become one
  // product. InvalidArgument UNSUPPORTED_SHAPE, ResourceExhausted OUT_OF_MEMORY.
  static absl::StatusOr<Linear> Make(const PackedModel& model, absl::Span<const std::string> names);
  static absl::StatusOr<Linear> Make(const Checkpoint& checkpoint,
                                     absl::Span<const std::string> names);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t bytes() const;

  // y [m, rows()] = x W'. args.bias must be null.
  void Apply(const cpu::MatmulArgs& args, Numerics numerics, ThreadPool& pool) const;

  // One row of W as fp32, for an embedding that is also the head. Requires `dense()`.
  bool dense() const;
  void ReadDenseRow(int64_t row, float* out) const;

 private:
  struct Part {
    int64_t first_row = 0;
    std::variant<cpu::PackedIntWeights, cpu::DenseWeights> weights;
  };
  absl::Status AddPacked(absl::Span<const PackedIntView> views, std::string_view name);
  absl::Status AddDense(absl::Span<const cpu::DenseView> views, std::string_view name);
  absl::Status AddRows(std::variant<cpu::PackedIntWeights, cpu::DenseWeights> weights, int64_t rows,
                       int64_t cols, std::string_view name);

  std::vector<Part> parts_;
  int64_t rows_ = 0, cols_ = 0;
};

// What Linear::Make keeps in memory for one matrix of this format.
int64_t LinearBytes(const StoredFormat& format, int64_t rows, int64_t cols);

FloatType KernelType(DType dtype);  // of a dense type

}  // namespace babai
