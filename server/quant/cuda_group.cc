#include "server/quant/cuda_group.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/codes.h"
#include "kernels/cuda/fit_scales.h"
#include "kernels/cuda/metric.h"
#include "kernels/cuda/moments.h"
#include "kernels/cuda/sweep.h"
#include "server/quant/certificate.h"
#include "server/quant/fit_input.h"
#include "server/quant/grid_tile.h"
#include "server/quant/order.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The norms' products lie where the sweep's errors will.
static_assert(cuda::kNormColumns <= cuda::kSweepErrors);

constexpr int64_t kMostInputs = 65535;  // and outputs: a launch's second dimension
constexpr int kCodes = 256;             // that there may be

// Arrays of k, alike in pinned memory and on the device: what the host sends for a factorization,
// what it gets, what it then sends for the sweep.
struct Columns {
  double* diag;
  int32_t* order;
  uint8_t* dead;
  double* pivots;
  int* info;
  float *raw_diag, *l_diag, *inverse, *importance;
  int64_t bytes;

  Columns(uint8_t* memory, int64_t k) {
    Carver carver(memory);
    diag = carver.Take<double>(k), order = carver.Take<int32_t>(k), dead = carver.Take<uint8_t>(k);
    pivots = carver.Take<double>(k), info = carver.Take<int>(1);
    raw_diag = carver.Take<float>(k), l_diag = carver.Take<float>(k);
    inverse = carver.Take<float>(k), importance = carver.Take<float>(k);
    bytes = carver.used();
  }
  Columns(const cuda::Buffer& buffer, int64_t k) : Columns(buffer.data<uint8_t>(), k) {}
};

// Arrays of n on the device.
struct RowSums {
  double *losses, *references;
  int *clipped, *refused;
  int64_t bytes;

  RowSums(uint8_t* memory, int64_t n) {
    Carver carver(memory);
    losses = carver.Take<double>(n), references = carver.Take<double>(n);
    clipped = carver.Take<int>(n), refused = carver.Take<int>(1);
    bytes = carver.used();
  }
};

absl::Status Launched(cudaError_t error, absl::string_view what) {
  return cuda::FromCuda(error, what);
}

template <typename T>
absl::Status CopyTo(const T* from, int64_t count, T* to, cudaMemcpyKind kind,
                    const cuda::Stream& stream) {
  return Launched(cudaMemcpyAsync(to, from, count * sizeof(T), kind, stream.get()), "copying");
}

int Int(int64_t value) { return static_cast<int>(value); }

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
           static_cast<int64_t>(linears) * kCodes * 8 + 7 * kLine;
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
                  cuda::BlockValues(m.k) * 4 + Columns(nullptr, m.k).bytes +
                  m.weights * (4 + 4 + 1) + int64_t{cuda::kSweepErrors} * m.n * 4 + m.code_bytes +
                  m.groups_weights * (2 + 2 + 1) + m.zero_bytes + RowSums(nullptr, m.n).bytes +
                  static_cast<int64_t>(m.linears) * kCodes * 8;
  memory.pinned = Columns(nullptr, m.k).bytes + m.result_bytes();
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
        std::pair{Columns(nullptr, m.k).bytes, &columns_}, std::pair{m.weights * 4, &weights_},
        std::pair{m.weights * 4, &sums_},
        std::pair{int64_t{cuda::kSweepErrors} * m.n * 4, &errors_}, std::pair{m.weights, &codes_},
        std::pair{m.code_bytes, &packed_}, std::pair{m.groups_weights * 2, &scales_},
        std::pair{m.groups_weights * 2, &turned_scales_}, std::pair{m.groups_weights, &zeros_},
        std::pair{m.zero_bytes, &packed_zeros_}, std::pair{RowSums(nullptr, m.n).bytes, &rows_},
        std::pair{static_cast<int64_t>(m.linears) * kCodes * 8, &counts_}}) {
    auto made = cuda::Buffer::OnDevice(bytes);
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  for (const auto& [bytes, buffer] : {std::pair{Columns(nullptr, m.k).bytes, &pinned_columns_},
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

// ---- the factor

absl::Status CudaGroupSolver::ReadDiagonal() {
  const Columns device(columns_, shape_.k), host(pinned_columns_, shape_.k);
  absl::Status status =
      Launched(cuda::Diagonal({moments_.data<float>(), device.raw_diag, Int(shape_.k)}, queue()),
               "Diagonal");
  if (status.ok()) {
    status = CopyTo(device.raw_diag, shape_.k, host.raw_diag, cudaMemcpyDeviceToHost, stream_);
  }
  if (status.ok()) status = stream_.Synchronize();
  if (!status.ok()) return status;
  std::vector<double> diag(host.raw_diag, host.raw_diag + shape_.k);
  for (double& d : diag) {
    d /= static_cast<double>(tokens_);
    if (std::isfinite(d)) continue;
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "",
                  "an input of the layer is not a number or infinite on the calibration data: the "
                  "model overflows the GPU's 16-bit activations on it");
  }
  auto plan = PlanDamping(diag);
  if (!plan.ok()) return plan.status();
  solved_.plan = *std::move(plan);
  return absl::OkStatus();
}

absl::Status CudaGroupSolver::Factorize() {
  const DampingPlan& plan = solved_.plan;
  std::vector<double> diag = plan.diag;
  solved_.damping = recipe_.damping * plan.mean;
  for (double& d : diag) d += solved_.damping;
  for (;; ++solved_.doublings) {
    const auto done = TryFactor(diag);
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
    if (solved_.doublings == kMostDampingDoublings || solved_.damping == 0) {
      return NoCholeskyFactor(solved_.damping / plan.mean);
    }
    for (double& d : diag) d += solved_.damping;  // twice what it was
    solved_.damping *= 2;
  }
}

absl::StatusOr<bool> CudaGroupSolver::TryFactor(absl::Span<const double> diag) {
  const int64_t k = shape_.k;
  const Columns device(columns_, k), host(pinned_columns_, k);
  const std::vector<int32_t> order = DiagonalOrder(recipe_.order, diag);
  std::copy(diag.begin(), diag.end(), host.diag);
  std::copy(order.begin(), order.end(), host.order);
  std::copy(solved_.plan.dead.begin(), solved_.plan.dead.end(), host.dead);
  absl::Status status = CopyTo(host.diag, k, device.diag, cudaMemcpyHostToDevice, stream_);
  if (status.ok()) status = CopyTo(host.order, k, device.order, cudaMemcpyHostToDevice, stream_);
  if (status.ok()) status = CopyTo(host.dead, k, device.dead, cudaMemcpyHostToDevice, stream_);
  const cuda::OrderMetricArgs metric = {moments_.data<float>(),
                                        device.order,
                                        device.diag,
                                        device.dead,
                                        1.0 / static_cast<double>(tokens_),
                                        metric_.data<double>(),
                                        Int(k)};
  if (status.ok()) status = Launched(cuda::OrderMetric(metric, queue()), "OrderMetric");
  if (status.ok()) {
    status = cholesky_->Run(metric_.data<double>(), Int(k), work_.data<double>(), work_values_,
                            device.info);
  }
  // As the norms want it; the sweep takes it again.
  const cuda::TakeFactorArgs take = {metric_.data<double>(), factor_.data<float>(), device.pivots,
                                     /*to_tf32=*/true, Int(k)};
  if (status.ok()) status = Launched(cuda::TakeFactor(take, queue()), "TakeFactor");
  if (status.ok()) status = CopyTo(device.info, 1, host.info, cudaMemcpyDeviceToHost, stream_);
  if (status.ok()) status = CopyTo(device.pivots, k, host.pivots, cudaMemcpyDeviceToHost, stream_);
  if (status.ok()) status = stream_.Synchronize();
  if (!status.ok()) return status;
  return *host.info == 0;
}

absl::Status CudaGroupSolver::TakePivots() {
  const int64_t k = shape_.k;
  const Columns device(columns_, k), host(pinned_columns_, k);
  solved_.squared_pivots.resize(k);
  for (int64_t p = 0; p < k; ++p) {
    const double l = host.pivots[p];
    solved_.squared_pivots[host.order[p]] = l * l;
    host.l_diag[p] = static_cast<float>(l), host.inverse[p] = static_cast<float>(1 / l);
  }
  const bool weighted = recipe_.scale_fit == ScaleFit::kLossWeighted;
  const std::vector<float> importance =
      MeanOne(weighted ? solved_.squared_pivots : std::vector<double>(), k);
  std::copy(importance.begin(), importance.end(), host.importance);
  absl::Status status = CopyTo(host.l_diag, k, device.l_diag, cudaMemcpyHostToDevice, stream_);
  if (status.ok())
    status = CopyTo(host.inverse, k, device.inverse, cudaMemcpyHostToDevice, stream_);
  if (!status.ok()) return status;
  return CopyTo(host.importance, k, device.importance, cudaMemcpyHostToDevice, stream_);
}

// ---- the codes

absl::Status CudaGroupSolver::FitAndSweep() {
  const int64_t k = shape_.k, n = shape_.n();
  const Columns columns(columns_, k);
  const RowSums rows(rows_.data<uint8_t>(), n);
  absl::Status status = clock_.Enter(kFitPhase);
  if (status.ok())
    status = Launched(cudaMemsetAsync(rows.refused, 0, 4, stream_.get()), "clearing");
  const cuda::FitScalesArgs fit = {
      stack(),
      columns.importance,
      scales_.data<uint16_t>(),
      zeros_.data<uint8_t>(),
      rows.refused,
      Int(n),
      Int(k),
      Int(solved_.group),
      recipe_.bits,
      recipe_.symmetric,
      recipe_.scale_fit == ScaleFit::kAbsMax ? cuda::FitRange::kWhole : cuda::FitRange::kSearched};
  if (status.ok()) status = Launched(cuda::FitScales(fit, queue()), "FitScales");
  if (status.ok()) status = clock_.Enter(kSweepPhase);
  const cuda::NormArgs norm = {stack(),
                               columns.order,
                               factor_.data<float>(),
                               sums_.data<float>(),
                               errors_.data<float>(),
                               rows.references,
                               Int(n),
                               Int(k)};
  if (status.ok()) status = cuda::SquaredNorms(norm, cublas_, queue());
  const cuda::SplitFactorArgs split = {metric_.data<double>(), factor_.data<float>(),
                                       blocks_.data<float>(), Int(k)};
  if (status.ok()) status = Launched(cuda::SplitFactor(split, queue()), "SplitFactor");
  cuda::SweepArgs sweep{};
  sweep.w = stack(), sweep.order = columns.order;
  sweep.split = factor_.data<float>(), sweep.blocks = blocks_.data<float>();
  sweep.diag = columns.l_diag, sweep.inverse = columns.inverse;
  sweep.scales = scales_.data<uint16_t>(), sweep.zeros = zeros_.data<uint8_t>();
  sweep.sums = sums_.data<float>(), sweep.errors = errors_.data<float>();
  sweep.codes = codes_.data<uint8_t>();
  sweep.losses = rows.losses, sweep.clipped = rows.clipped;
  sweep.n = Int(n), sweep.k = Int(k), sweep.group = Int(solved_.group);
  sweep.max_code = (1 << recipe_.bits) - 1;
  return status.ok() ? cuda::Sweep(sweep, cublas_, queue()) : status;
}

CudaGroupSolver::Results CudaGroupSolver::ResultsAt(uint8_t* memory, const CudaGroupShape& shape,
                                                    int64_t group) const {
  const int64_t n = shape.n(), groups = shape.k / group;
  Carver carver(memory);
  Results r = {};
  r.codes = carver.Take<uint8_t>(n * CodeRowBytes(shape.k));
  r.zeros = carver.Take<uint8_t>(n * ((groups * recipe_.bits + 7) / 8));
  r.scales = carver.Take<uint16_t>(n * groups);
  r.losses = carver.Take<double>(n), r.references = carver.Take<double>(n);
  r.clipped = carver.Take<int>(n), r.refused = carver.Take<int>(1);
  r.counts = carver.Take<int64_t>(static_cast<int64_t>(shape.rows.size()) * kCodes);
  return r;
}

// Everything row-major and packed, and a copy of it on its way to the host.
absl::Status CudaGroupSolver::Pack() {
  const int64_t k = shape_.k, n = shape_.n(), groups = k / solved_.group, bits = recipe_.bits;
  const int64_t zero_bytes = (groups * bits + 7) / 8, linears = shape_.rows.size();
  const cuda::Queue q = queue();
  auto* counts = counts_.data<unsigned long long>();
  absl::Status status = clock_.Enter(kPackPhase);
  const auto then = [&](cudaError_t error, absl::string_view what) {
    if (status.ok()) status = Launched(error, what);
  };
  then(cuda::PackStreams({codes_.data<uint8_t>(), packed_.data<uint8_t>(), Int(k), Int(n),
                          Int(bits), CodeRowBytes(k)},
                         q),
       "PackStreams");
  then(cuda::PackStreams({zeros_.data<uint8_t>(), packed_zeros_.data<uint8_t>(), Int(groups),
                          Int(n), Int(bits), zero_bytes},
                         q),
       "PackStreams");
  then(cuda::TurnHalves(
           {scales_.data<uint16_t>(), turned_scales_.data<uint16_t>(), Int(groups), Int(n)}, q),
       "TurnHalves");
  then(cudaMemsetAsync(counts, 0, linears * kCodes * 8, stream_.get()), "clearing counts");
  int64_t first_row = 0;
  for (int64_t i = 0; i < linears; ++i) {
    then(cuda::CountCodes({codes_.data<uint8_t>(), counts + i * kCodes, Int(k), Int(n),
                           Int(first_row), Int(shape_.rows[i])},
                          q),
         "CountCodes");
    first_row += shape_.rows[i];
  }
  const Results& r = solved_.results =
      ResultsAt(pinned_results_.data<uint8_t>(), shape_, solved_.group);
  const RowSums rows(rows_.data<uint8_t>(), n);
  const auto bring = [&](const auto* from, int64_t count, auto* to) {
    if (status.ok()) status = CopyTo(from, count, to, cudaMemcpyDeviceToHost, stream_);
  };
  bring(packed_.data<uint8_t>(), n * CodeRowBytes(k), r.codes);
  bring(packed_zeros_.data<uint8_t>(), n * zero_bytes, r.zeros);
  bring(turned_scales_.data<uint16_t>(), n * groups, r.scales);
  bring(rows.losses, n, r.losses);
  bring(rows.references, n, r.references);
  bring(rows.clipped, n, r.clipped);
  bring(rows.refused, 1, r.refused);
  bring(reinterpret_cast<const int64_t*>(counts), linears * kCodes, r.counts);
  return status;
}

absl::Status CudaGroupSolver::Decode(void* out) {
  const CudaGroupShape& shape = solved_.shape;
  const cuda::DecodeCodesArgs args = {packed_.data<uint8_t>(), scales_.data<uint16_t>(),
                                      zeros_.data<uint8_t>(),  out,
                                      Int(shape.n()),          Int(shape.k),
                                      Int(solved_.group),      recipe_.bits,
                                      CodeRowBytes(shape.k),   dtype_};
  return Launched(cuda::DecodeCodes(args, queue()), "DecodeCodes");
}

// ---- what the host makes of it

absl::StatusOr<std::vector<QuantizedLinear>> CudaGroupSolver::Finish() {
  if (absl::Status s = done_.Wait(); !s.ok()) return s;
  const int refused = *solved_.results.refused;
  if (refused & cuda::kFitNotFinite) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kNonFiniteWeights, "",
                  "a weight is not a number or infinite");
  }
  if (refused & cuda::kFitTooLarge) return WeightsTooLarge();
  std::vector<QuantizedLinear> linears;
  int64_t first_row = 0;
  for (size_t i = 0; i < solved_.shape.rows.size(); ++i) {
    auto linear = Collect(i, first_row);
    if (!linear.ok()) return linear.status();
    linears.push_back(*std::move(linear));
    first_row += solved_.shape.rows[i];
  }
  return linears;
}

absl::StatusOr<QuantizedLinear> CudaGroupSolver::Collect(int64_t index, int64_t first_row) const {
  const Results& r = solved_.results;
  const int64_t rows = solved_.shape.rows[index], k = solved_.shape.k, groups = k / solved_.group;
  const int64_t code_bytes = CodeRowBytes(k), zero_bytes = (groups * recipe_.bits + 7) / 8;
  PackedInt packed;
  packed.rows = rows, packed.cols = k, packed.group = solved_.group, packed.bits = recipe_.bits;
  packed.codes.assign(r.codes + first_row * code_bytes, r.codes + (first_row + rows) * code_bytes);
  packed.scales.assign(r.scales + first_row * groups, r.scales + (first_row + rows) * groups);
  if (!recipe_.symmetric) {
    packed.zeros.assign(r.zeros + first_row * zero_bytes,
                        r.zeros + (first_row + rows) * zero_bytes);
  }
  const double weights = static_cast<double>(rows) * static_cast<double>(k);
  Certificate c;
  int64_t clipped = 0;
  for (int64_t i = first_row; i < first_row + rows; ++i) {
    c.proxy_loss += r.losses[i], c.reference_loss += r.references[i], clipped += r.clipped[i];
  }
  if (!std::isfinite(c.proxy_loss)) {
    return Refuse(absl::StatusCode::kFailedPrecondition, reason::kHessianNotPositiveDefinite, "",
                  "the calibration inputs of a layer are too small or too large for fp32");
  }
  if (c.reference_loss > 0) c.relative_error = std::sqrt(c.proxy_loss / c.reference_loss);
  c.clip_rate = static_cast<double>(clipped) / weights;
  c.entropy_bits = EntropyOfCounts({r.counts + index * kCodes, kCodes});
  c.rate_gap_bits = RateGapBits(absl::MakeConstSpan(solved_.squared_pivots));
  c.damping = solved_.damping, c.damping_doublings = solved_.doublings;
  c.dead_columns = solved_.plan.dead_columns;
  UniformGrid grid = {recipe_.bits, recipe_.symmetric, rows, k, solved_.group};
  grid.scales = packed.scales;
  c.babai_bound = BabaiBound(grid, absl::MakeConstSpan(solved_.squared_pivots));
  QuantizedLinear linear = {{.base = std::move(packed)}, c};
  linear.certificate.bits_per_weight = 8 * static_cast<double>(linear.packed.bytes()) / weights;
  return linear;
}

}  // namespace babai
