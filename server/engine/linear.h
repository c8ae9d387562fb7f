// A linear of the runner: weights of one or several stacked matrices (q over k over v, gate over
// up) in the CPU's execution layout. linear_layout.h says what each stored format becomes.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/sparse.h"
#include "kernels/cpu/thread_pool.h"
#include "server/engine/linear_layout.h"
#include "server/engine/runner.h"
#include "server/model/checkpoint.h"
#include "server/store/packed_model.h"

namespace babai {

// Immutable once made; any number of threads may use it.
class Linear {
 public:
  Linear() = default;
  // Stacks the named matrices (which must be there) by rows. Neighbours of one format without
  // anything around it become one product. InvalidArgument UNSUPPORTED_SHAPE, ResourceExhausted
  // OUT_OF_MEMORY; DataLoss INVALID_MODEL_FILE: a stream does not decode.
  static absl::StatusOr<Linear> Make(const PackedModel& model, absl::Span<const std::string> names);
  static absl::StatusOr<Linear> Make(const Checkpoint& checkpoint,
                                     absl::Span<const std::string> names);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t bytes() const;

  // y [m, rows()] = x W'. args.bias must be null, args.scratch of LinearScratchBytes(m, cols()).
  // y[t] depends on x[t] alone, as the kernels promise.
  void Apply(const cpu::MatmulArgs& args, Numerics numerics, ThreadPool& pool) const;

  // One row of W as fp32, for an embedding that is also the head. Requires `dense()`.
  bool dense() const;
  void ReadDenseRow(int64_t row, float* out) const;

 private:
  // x becomes factors * (R_in x).
  struct Prologue {
    Rotation rotation;
    std::vector<float> signs;    // RotationScales(), empty without a rotation
    std::vector<float> factors;  // or empty
    bool operator==(const Prologue& o) const {
      return rotation == o.rotation && factors == o.factors;
    }
  };
  struct Part {
    int64_t first_row = 0, rows = 0;
    std::variant<cpu::PackedIntWeights, cpu::DenseWeights> weights;
    cpu::SparseWeights sparse;
    int prologue = -1;      // in prologues_; -1: x as it is
    int64_t out_block = 1;  // of R_out; 1: none
    std::vector<float> out_signs;
  };

  // Plain matrices of one format.
  absl::Status AddStack(const PackedModel& model, absl::Span<const std::string> names);
  absl::Status AddPacked(absl::Span<const PackedIntView> views, std::string_view name);
  absl::Status AddDense(absl::Span<const cpu::DenseView> views, std::string_view name);
  // Anything but a plain matrix: a part of its own.
  absl::Status AddLinear(const PackedLinearView& w, std::string_view name);
  absl::Status AddIntegers(const PackedLinearView& w, const LinearLayout& layout,
                           std::string_view name);
  absl::Status AddPart(Part part, int64_t cols, std::string_view name);
  int PrologueOf(const Rotation& rotation, std::vector<float> factors, int64_t cols);

  void Prepare(const Prologue& prologue, const cpu::MatmulArgs& args, float* out,
               ThreadPool& pool) const;
  static void ApplyPart(const Part& part, const cpu::MatmulArgs& args, Numerics numerics,
                        ThreadPool& pool);

  std::vector<Prologue> prologues_;
  std::vector<Part> parts_;
  int64_t rows_ = 0, cols_ = 0;
};

// Scratch of Linear::Apply. Grows with m and with k.
int64_t LinearScratchBytes(int64_t m, int64_t k);

// What Linear::Make keeps in memory for a matrix of the model, which must be there; of an
// entropy-coded one an estimate. DataLoss as Make.
absl::StatusOr<int64_t> LinearBytes(const PackedModel& model, const std::string& name);

FloatType KernelType(DType dtype);  // of a dense type

}  // namespace babai
