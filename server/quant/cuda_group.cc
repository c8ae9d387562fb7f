#include "server/quant/cuda_group.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/metric.h"
#include "kernels/cuda/moments.h"
#include "kernels/cuda/sweep.h"
#include "server/quant/cuda_group_arrays.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The norms' products lie where the sweep's errors will.
static_assert(cuda::kNormColumns <= cuda::kSweepErrors);

constexpr int64_t kMostInputs = 65535;  // and outputs: a launch's second dimension

// Sizes for the largest group of each kind.
struct Largest {
  int64_t k = 0, n = 0, weights = 0, groups_weights = 0, code_bytes = 0, zero_bytes = 0;
  size_t linears = 0;

  Largest(absl::Span<const CudaGroupShape> shapes, const Recipe& recipe) {
    for (const CudaGroupShape& s : shapes) {
      const int64_t group = GroupFor(recipe, s.k).value_or(s.k), groups = s.k / group;
      k = std::max(k, s.k), n = std::max(n, s.n()), weights = std::max(weights, s.n() * s.k);
      groups_weights = std::max(groups_weights, s.n() * groups);
      code_bytes = std::max(code_bytes, s.n() * ((s.k * recipe.bits + 31) / 32 * 4));
      zero_bytes = std::max(zero_bytes, s.n() * ((groups * recipe.bits + 7) / 8));
      linears = std::max(linears, s.rows.size());
    }
  }
  int64_t result_bytes() const {
    constexpr int64_t kLine = 64;
    return code_bytes + zero_bytes + 2 * groups_weights + n * (2 * 8 + 4) + 4 +
           static_cast<int64_t>(linears) * kCudaCodes * 8 + 8 * kLine;
  }
};

}  // namespace

int64_t CudaGroupShape::n() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }

bool CudaGroupSolver::Takes(const Recipe& r) {
  return r.solver == Solver::kBabai && r.grid == GridKind::kUniform && r.descent_passes == 0 &&
         r.order != Order::kMinPivot && r.scale_fit != ScaleFit::kSwept &&
         r.outlier_rule == OutlierRule::kNone && r.rotation == RotationKind::kNone &&
         r.target == Target::kNone && r.rescale == Rescale::kNone && !r.norm_tweak &&
         r.allocation == Allocation::kEqual;
}

absl::Status CudaGroupSolver::Check(const Recipe& recipe, absl::Span<const CudaGroupShape> shapes) {
  if (!Takes(recipe)) {
    return InvalidField("recipe", "has a stage that is not done on the GPU");
  }
  for (const CudaGroupShape& shape : shapes) {
    const auto group = GroupFor(recipe, shape.k);
    if (!group.ok()) return group.status();
    if (shape.k % 8 != 0 || shape.k > kMostInputs || shape.n() > kMostInputs) {
      return Refuse(
          absl::StatusCode::kInvalidArgument, reason::kUnsupportedShape, "",
          absl::StrCat("the GPU's solver takes multiples of 8 inputs and groups of linears "
                       "of up to ",
                       kMostInputs, " inputs and outputs, not ", shape.k, " and ", shape.n()));
    }
  }
  return absl::OkStatus();
}

CudaGroupSolver::Memory CudaGroupSolver::Plan(absl::Span<const CudaGroupShape> shapes,
                                              const Recipe& recipe) {
  const Largest m(shapes, recipe);
  Memory memory;
  // cuSOLVER's workspace is not known before it is opened: it takes less than a quarter of k^2.
  memory.device = m.k * m.k * (4 + 8 + 2) + cuda::SplitValues(m.k) * 4 +
                  cuda::BlockValues(m.k) * 4 + GroupColumns(nullptr, m.k).bytes +
                  m.weights * (4 + 4 + 1) + int64_t{cuda::kSweepErrors} * m.n * 4 + m.code_bytes +
                  m.groups_weights * (2 + 2 + 1) + m.zero_bytes + GroupRowSums(nullptr, m.n).bytes +
                  static_cast<int64_t>(m.linears) * kCudaCodes * 8;
  memory.pinned = GroupColumns(nullptr, m.k).bytes + m.result_bytes();
  return memory;
}

absl::StatusOr<std::unique_ptr<CudaGroupSolver>> CudaGroupSolver::Make(
    absl::Span<const CudaGroupShape> shapes, const Recipe& recipe, cuda::Dtype activations,
    const cuda::Stream& stream, cuda::Cublas& cublas, cuda::PhaseClock& clock) {
  if (absl::Status s = Check(recipe, shapes); !s.ok()) return s;
  std::unique_ptr<CudaGroupSolver> solver(
      new CudaGroupSolver(recipe, activations, stream, cublas, clock));
  if (absl::Status s = solver->Allocate(shapes); !s.ok()) return s;
  return solver;
}

CudaGroupSolver::CudaGroupSolver(const Recipe& recipe, cuda::Dtype activations,
                                 const cuda::Stream& stream, cuda::Cublas& cublas,
                                 cuda::PhaseClock& clock)
    : recipe_(recipe), dtype_(activations), stream_(stream), cublas_(cublas), clock_(clock) {}

absl::Status CudaGroupSolver::Allocate(absl::Span<const CudaGroupShape> shapes) {
  auto cholesky = cuda::Cholesky::Make(stream_);
  if (!cholesky.ok()) return cholesky.status();
  cholesky_ = *std::move(cholesky);
  auto done = cuda::Event::Make();
  if (!done.ok()) return done.status();
  done_ = *std::move(done);
  const Largest m(shapes, recipe_);
  for (const CudaGroupShape& shape : shapes) {
    const auto values = cholesky_->WorkspaceValues(Int(shape.k));
    if (!values.ok()) return values.status();
    work_values_ = std::max(work_values_, *values);
  }
  for (const auto& [bytes, buffer] :
       {std::pair{m.k * m.k * 4, &moments_}, std::pair{m.k * m.k * 8, &metric_},
        std::pair{cuda::SplitValues(m.k) * 4, &factor_},
        std::pair{cuda::BlockValues(m.k) * 4, &blocks_}, std::pair{work_values_ * 8, &work_},
        std::pair{GroupColumns(nullptr, m.k).bytes, &columns_}, std::pair{m.weights * 4, &weights_},
        std::pair{m.weights * 4, &sums_},
        std::pair{int64_t{cuda::kSweepErrors} * m.n * 4, &errors_}, std::pair{m.weights, &codes_},
        std::pair{m.code_bytes, &packed_}, std::pair{m.groups_weights * 2, &scales_},
        std::pair{m.groups_weights * 2, &turned_scales_}, std::pair{m.groups_weights, &zeros_},
        std::pair{m.zero_bytes, &packed_zeros_},
        std::pair{GroupRowSums(nullptr, m.n).bytes, &rows_},
        std::pair{static_cast<int64_t>(m.linears) * kCudaCodes * 8, &counts_}}) {
    auto made = cuda::Buffer::OnDevice(bytes);
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  for (const auto& [bytes, buffer] : {std::pair{GroupColumns(nullptr, m.k).bytes, &pinned_columns_},
                                      std::pair{m.result_bytes(), &pinned_results_}}) {
    auto made = cuda::Buffer::Pinned(bytes);
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  return absl::OkStatus();
}

absl::Status CudaGroupSolver::Begin(const CudaGroupShape& shape) {
  shape_ = shape;
  tokens_ = 0;
  if (absl::Status s = clock_.Enter(kMomentsPhase); !s.ok()) return s;
  return Launched(cudaMemsetAsync(moments_.data(), 0, shape.k * shape.k * 4, stream_.get()),
                  "clearing moments");
}

absl::Status CudaGroupSolver::AddInputs(const void* x, int64_t tokens) {
  if (absl::Status s = clock_.Enter(kMomentsPhase); !s.ok()) return s;
  for (int64_t first = 0; first < tokens; first += cuda::kMostMomentTokens) {
    const int64_t count = std::min<int64_t>(cuda::kMostMomentTokens, tokens - first);
    const cuda::MomentsArgs args = {static_cast<const uint16_t*>(x) + first * shape_.k,
                                    moments_.data<float>(), Int(count), Int(shape_.k), dtype_};
    if (absl::Status s = cuda::AddMoments(args, cublas_); !s.ok()) return s;
  }
  tokens_ += tokens;
  return absl::OkStatus();
}

absl::Status CudaGroupSolver::StackWeights(int index, const float* w) {
  int64_t first_row = 0;
  for (int i = 0; i < index; ++i) first_row += shape_.rows[i];
  const cuda::StackRowsArgs args = {
      w, stack(), Int(shape_.rows[index]), Int(shape_.k), Int(shape_.n()), Int(first_row)};
  return Launched(cuda::StackRows(args, queue()), "StackRows");
}

absl::Status CudaGroupSolver::Solve() {
  solved_ = Solved();
  solved_.shape = shape_;
  const auto group = GroupFor(recipe_, shape_.k);
  if (!group.ok()) return group.status();
  solved_.group = *group;
  absl::Status status = clock_.Enter(kFactorPhase);
  if (status.ok()) status = ReadDiagonal();
  if (status.ok()) status = Factorize();
  if (status.ok()) status = TakePivots();
  if (status.ok()) status = FitAndSweep();
  if (status.ok()) status = Pack();
  if (status.ok()) status = done_.Record(stream_);
  return status;
}

}  // namespace babai
