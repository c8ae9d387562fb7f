// Scales and codes of a group, and what the host makes of them.
#include <cmath>
#include <utility>

#include "kernels/cuda/codes.h"
#include "kernels/cuda/fit_scales.h"
#include "kernels/cuda/metric.h"
#include "kernels/cuda/sweep.h"
#include "server/quant/certificate.h"
#include "server/quant/cuda_group.h"
#include "server/quant/cuda_group_arrays.h"
#include "server/quant/fit_input.h"
#include "server/reason/reason.h"

namespace babai {

absl::Status CudaGroupSolver::FitAndSweep() {
  const int64_t k = shape_.k, n = shape_.n();
  const GroupColumns columns(columns_, k);
  const GroupRowSums rows(rows_.data<uint8_t>(), n);
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
  r.counts = carver.Take<int64_t>(static_cast<int64_t>(shape.rows.size()) * kCudaCodes);
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
  then(cudaMemsetAsync(counts, 0, linears * kCudaCodes * 8, stream_.get()), "clearing counts");
  int64_t first_row = 0;
  for (int64_t i = 0; i < linears; ++i) {
    then(cuda::CountCodes({codes_.data<uint8_t>(), counts + i * kCudaCodes, Int(k), Int(n),
                           Int(first_row), Int(shape_.rows[i])},
                          q),
         "CountCodes");
    first_row += shape_.rows[i];
  }
  const Results& r = solved_.results =
      ResultsAt(pinned_results_.data<uint8_t>(), shape_, solved_.group);
  const GroupRowSums rows(rows_.data<uint8_t>(), n);
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
  bring(reinterpret_cast<const int64_t*>(counts), linears * kCudaCodes, r.counts);
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
  c.entropy_bits = EntropyOfCounts({r.counts + index * kCudaCodes, kCudaCodes});
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
