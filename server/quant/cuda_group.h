// Quantizing the linears of a group, which share their input, on the GPU: what layer.h does for a
// uniform grid and the sweep, with the same arithmetic (fp32; factor and losses fp64), so that all
// but a few codes in ten thousand are the CPU's. Two runs give the same bits.
//
//   moments   tensor-core products of 16-bit activations, fp32 sums (kernels/cuda/moments.h)
//   factor    order and damping by the CPU's own rules (factor.h), Cholesky in fp64
//   scales    the CPU's search, operation by operation
//   sweep     all rows of all linears of the group together (kernels/cuda/sweep.h)
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/cholesky.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/phase_clock.h"
#include "kernels/cuda/queue.h"
#include "server/quant/factor.h"
#include "server/quant/layer.h"
#include "server/quant/recipe.h"

namespace babai {

// Linears [rows[i], k], one over the other.
struct CudaGroupShape {
  std::vector<int64_t> rows;
  int64_t k = 0;

  int64_t n() const;
};

// The phases of a PhaseClock that a group solver enters; what else the stream does has others.
enum CudaPhase { kForwardPhase, kMomentsPhase, kFactorPhase, kFitPhase, kSweepPhase, kPackPhase };
inline constexpr int kCudaPhases = 6;

class CudaGroupSolver {
 public:
  // Whether recipes like this, and groups of these shapes, are done here.
  static bool Takes(const Recipe& recipe);
  static absl::Status Check(const Recipe& recipe, absl::Span<const CudaGroupShape> shapes);
  // Device and pinned memory for any of these groups.
  struct Memory {
    int64_t device = 0, pinned = 0;
  };
  static Memory Plan(absl::Span<const CudaGroupShape> shapes, const Recipe& recipe);

  // Everything is enqueued on `stream`, which `cublas` must be bound to. They and the clock must
  // outlive the solver. FailedPrecondition: cuSOLVER is missing.
  static absl::StatusOr<std::unique_ptr<CudaGroupSolver>> Make(
      absl::Span<const CudaGroupShape> shapes, const Recipe& recipe, cuda::Dtype activations,
      const cuda::Stream& stream, cuda::Cublas& cublas, cuda::PhaseClock& clock);

  // A group in order of the calls: Begin, AddInputs.., StackWeights.., Solve, Decode, Finish; the
  // next group may Begin before Finish.
  absl::Status Begin(const CudaGroupShape& shape);
  // x [tokens, k] 16-bit activations on the device. Enqueues.
  absl::Status AddInputs(const void* x, int64_t tokens);
  // Weights [rows, k] fp32 of linear number `index`, on the device. Enqueues.
  absl::Status StackWeights(int index, const float* w);
  // Where they are stacked, [k, n] feature-major, for whoever makes them on the device.
  float* stack() const { return weights_.data<float>(); }
  // Waits for the moments, factors, and enqueues the rest. FailedPrecondition
  // CALIBRATION_NON_FINITE, HESSIAN_NOT_POSITIVE_DEFINITE.
  absl::Status Solve();
  // Enqueues out [n, k] = the weights as they will be served, of the activations' type.
  absl::Status Decode(void* out);
  // Waits for what Solve() enqueued and no more. One for each linear. InvalidArgument
  // NON_FINITE_WEIGHTS, UNSUPPORTED_FORMAT.
  absl::StatusOr<std::vector<QuantizedLinear>> Finish();

 private:
  // What Solve() leaves in pinned memory.
  struct Results {
    uint8_t *codes, *zeros;
    uint16_t* scales;
    double *losses, *references;
    int *clipped, *refused;
    int64_t* counts;  // [linears, 256]
  };
  // What Finish() needs of the group while the next one begins.
  struct Solved {
    CudaGroupShape shape;
    int64_t group = 0;
    DampingPlan plan;
    double damping = 0;
    int doublings = 0;
    std::vector<double> squared_pivots;  // by original column
    Results results;
  };

  CudaGroupSolver(const Recipe& recipe, cuda::Dtype activations, const cuda::Stream& stream,
                  cuda::Cublas& cublas, cuda::PhaseClock& clock);
  absl::Status Allocate(absl::Span<const CudaGroupShape> shapes);
  absl::Status ReadDiagonal();
  absl::Status Factorize();
  absl::StatusOr<bool> TryFactor(absl::Span<const double> diag);
  absl::Status TakePivots();
  absl::Status FitAndSweep();
  absl::Status Pack();
  Results ResultsAt(uint8_t* memory, const CudaGroupShape& shape, int64_t group) const;
  absl::StatusOr<QuantizedLinear> Collect(int64_t index, int64_t first_row) const;
  int64_t CodeRowBytes(int64_t k) const { return (k * recipe_.bits + 31) / 32 * 4; }
  cuda::Queue queue() const { return {stream_.get(), false}; }

  const Recipe recipe_;
  const cuda::Dtype dtype_;
  const cuda::Stream& stream_;
  cuda::Cublas& cublas_;
  cuda::PhaseClock& clock_;
  std::unique_ptr<cuda::Cholesky> cholesky_;
  cuda::Event done_;

  CudaGroupShape shape_;
  int64_t tokens_ = 0;
  Solved solved_;

  // On the device, for the largest group.
  cuda::Buffer moments_, metric_, factor_, blocks_, work_;  // sums, fp64, L split, cuSOLVER's
  cuda::Buffer columns_;                                    // small arrays of k
  cuda::Buffer weights_, sums_, errors_;                    // [k, n], [k, n], [kSweepErrors, n]
  cuda::Buffer codes_, packed_, scales_, turned_scales_, zeros_, packed_zeros_;
  cuda::Buffer rows_;  // small arrays of n
  cuda::Buffer counts_;
  cuda::Buffer pinned_columns_, pinned_results_;
  int64_t work_values_ = 0;
};

}  // namespace babai
