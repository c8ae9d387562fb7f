#include "server/jobs/block_quantizer.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>

#include "server/jobs/stored_tensors.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// Different for each of a block's rotations: 0..3 its groups' inputs, from 4 on its linears'
// outputs. A rotation uses the numbers from its seed on.
uint64_t RotationSeed(int64_t block, int64_t which) {
  return static_cast<uint64_t>(block * 16 + which) << 32;
}

Rotation OutputRotation(const Recipe& recipe, int64_t block, std::string_view linear, int64_t n) {
  if (recipe.rotation != RotationKind::kOutput && recipe.rotation != RotationKind::kBoth) return {};
  constexpr std::string_view kLinears[] = {"q", "k", "v", "o", "gate", "up", "down"};
  const auto* found = std::find(std::begin(kLinears), std::end(kLinears), linear);
  return {RotationBlock(n), RotationSeed(block, 4 + (found - std::begin(kLinears)))};
}

bool AddsToResidual(Group group) { return group == Group::kO || group == Group::kDown; }

}  // namespace

// The message is the solver's own.
absl::Status InBlock(int64_t block, const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status) || !FieldOf(status).empty()) return status;
  const std::string why = ReasonOf(status);
  return Refuse(status.code(), why.empty() ? reason::kInternal : std::string_view(why),
                "blocks." + std::to_string(block), std::string(status.message()));
}

LinearReport MakeReport(const std::string& name, const QuantizedLinear& linear) {
  const Certificate& c = linear.certificate;
  LinearReport report;
  report.name = name;
  report.rows = linear.packed.rows();
  report.cols = linear.packed.cols();
  report.bits_per_weight = c.bits_per_weight;
  report.relative_error = c.relative_error;
  report.proxy_loss = c.proxy_loss;
  report.babai_bound = c.babai_bound;
  report.clip_rate = c.clip_rate;
  report.rate_gap_bits = c.rate_gap_bits;
  report.entropy_bits = c.entropy_bits;
  report.damping = c.damping;
  report.damping_doublings = c.damping_doublings;
  report.dead_columns = c.dead_columns;
  report.alpha = c.alpha;
  report.outliers = c.outliers;
  return report;
}

Rotation InputRotation(const Recipe& recipe, int64_t block, Group group, int64_t inputs) {
  if (recipe.rotation != RotationKind::kInput && recipe.rotation != RotationKind::kBoth) return {};
  return {RotationBlock(inputs), RotationSeed(block, static_cast<int64_t>(group))};
}

Recipe WithBits(Recipe recipe, double bits) {
  if (recipe.codes_integers()) {
    recipe.target_bits = bits;
    return recipe;
  }
  recipe.bits = static_cast<int>(bits);
  recipe.target_bits = 0;
  recipe.allocation = Allocation::kEqual;
  return recipe;
}

std::string BlockFileName(int64_t block) {
  char name[48];
  std::snprintf(name, sizeof(name), "block-%05lld.safetensors", static_cast<long long>(block));
  return name;
}

BlockQuantizer::BlockQuantizer(const QuantizerInputs& inputs)
    : in_(inputs), config_(inputs.checkpoint.config()) {}

absl::Status BlockQuantizer::Run(OnLinear on_linear,
                                 absl::FunctionRef<void(int64_t, double)> on_group) {
  const auto read = [this](int64_t block) {
    return std::async(std::launch::async, [this, block] { return ReadBlock(block); });
  };
  auto next = read(0);
  for (int64_t index = 0; index < config_.layers; ++index) {
    absl::StatusOr<Block> block = next.get();
    if (!block.ok()) return block.status();
    if (index + 1 < config_.layers) next = read(index + 1);  // while this one is worked on
    const auto status = RunBlock(index, *std::move(block), on_linear,
                                 [&](double fraction) { on_group(index, fraction); });
    if (!status.ok()) return InBlock(index, status);
  }
  return absl::OkStatus();
}

absl::StatusOr<BlockQuantizer::Block> BlockQuantizer::ReadBlock(int64_t index) const {
  Block block;
  for (const Group group : kGroups) {
    for (const std::string& linear : LinearsOf(config_, group)) {
      auto values = in_.checkpoint.Read(BlockTensor(index, linear + ".weight"));
      if (!values.ok()) return values.status();
      block.weights[linear] = *std::move(values);
    }
  }
  return block;
}

absl::Status BlockQuantizer::RunBlock(int64_t index, Block block, OnLinear on_linear,
                                      absl::FunctionRef<void(double)> on_group) {
  auto params = LoadBlockParams(config_, index, SourceOf(in_.checkpoint));
  if (!params.ok()) return params.status();
  block.original = *std::move(params);
  block.served = block.original;
  if (in_.stream != nullptr) in_.stream->BeginBlock(index, &block.served);
  if (in_.reference != nullptr) in_.reference->BeginBlock(index, &block.original);
  int done = 0;
  for (const Group group : kGroups) {
    if (auto status = RunGroup(index, group, block, on_linear); !status.ok()) return status;
    on_group(++done / static_cast<double>(std::size(kGroups)));
  }
  std::map<std::string, NormParams> tweaked;
  if (in_.recipe.norm_tweak) {
    tweaked[BlockTensor(index, "attn_norm.weight")] = block.served.attn_norm;
    tweaked[BlockTensor(index, "mlp_norm.weight")] = block.served.mlp_norm;
  }
  if (auto status = AddBlockVectors(in_.checkpoint, index, in_.recipe, in_.pool, in_.stop,
                                    in_.writer, tweaked);
      !status.ok()) {
    return status;
  }
  return in_.writer.FinishFile(BlockFileName(index));
}

absl::StatusOr<BlockQuantizer::GroupMetric> BlockQuantizer::MeasureInputs(int64_t index,
                                                                          Group group) {
  GroupMetric metric;
  const int64_t k = InputsOf(config_, group);
  metric.in = InputRotation(in_.recipe, index, group, k);
  if (!in_.recipe.needs_moments()) return metric;
  std::vector<double> hessian;
  double damping = in_.recipe.damping;
  {
    Moments moments(k, in_.pool);
    const auto status =
        in_.stream->Inputs(group, in_.training,
                           [&](const float* x, int64_t tokens) { return moments.Add(x, tokens); });
    if (!status.ok()) return status;
    hessian = moments.Hessian(), damping = DampingFor(damping, moments.tokens(), k);
  }
  RotateMetric(metric.in, hessian.data(), k);
  auto factor = FactorHessian(std::move(hessian), in_.recipe.order, damping);
  if (!factor.ok()) return factor.status();
  metric.factor = *std::move(factor);
  if (in_.recipe.target == Target::kNone) return metric;
  if (auto status = MeasureDrift(group, metric); !status.ok()) return status;
  return metric;
}

absl::Status BlockQuantizer::MeasureDrift(Group group, GroupMetric& metric) {
  // A norm behind the projection stands between it and the residual stream.
  const bool residual = in_.recipe.residual && AddsToResidual(group) && !config_.post_norms;
  DriftMoments moments(InputsOf(config_, group), residual ? config_.hidden : 0,
                       in_.training * in_.stream->length() / 2,
                       in_.recipe.target == Target::kClosedForm, in_.pool);
  const auto status = in_.stream->PairedInputs(
      group, in_.training, *in_.reference, [&](const CalibrationStream::PairedRows& rows) {
        return moments.Add(rows.mine, rows.other, rows.my_residual, rows.other_residual,
                           rows.tokens);
      });
  if (!status.ok()) return status;
  metric.drift = moments.drift();
  RotateDrift(metric.in, *metric.drift);
  if (!residual) return absl::OkStatus();
  metric.residual = moments.residual();
  RotateDrift(metric.in, *metric.residual);
  return absl::OkStatus();
}

// Each channel of the norm's output becomes the least-squares fit to the original model's.
absl::Status BlockQuantizer::TweakNorm(Group group, Block& block) {
  if (!in_.recipe.norm_tweak || AddsToResidual(group)) return absl::OkStatus();
  const int64_t k = config_.hidden;
  std::vector<double> cross(k, 0.0), own(k, 0.0);
  const auto status = in_.stream->PairedInputs(
      group, in_.training, *in_.reference, [&](const CalibrationStream::PairedRows& rows) {
        for (int64_t i = 0; i < rows.tokens * k; ++i) {
          cross[i % k] += static_cast<double>(rows.mine[i]) * rows.other[i];
          own[i % k] += static_cast<double>(rows.mine[i]) * rows.mine[i];
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  NormParams& norm = group == Group::kQkv ? block.served.attn_norm : block.served.mlp_norm;
  for (int64_t c = 0; c < k && c < static_cast<int64_t>(norm.weight.size()); ++c) {
    if (own[c] > 0) norm.weight[c] *= static_cast<float>(cross[c] / own[c]);
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizedLinear> BlockQuantizer::Solve(int64_t index, const std::string& linear,
                                                      const std::vector<float>& w,
                                                      const GroupMetric& metric) {
  LinearProblem problem;
  problem.w = w;
  const std::string name = BlockTensor(index, linear + ".weight");
  const TensorInfo* tensor = in_.checkpoint.Find(name);
  problem.n = tensor->shape[0];
  problem.k = tensor->shape[1];
  problem.factor = metric.factor ? &*metric.factor : nullptr;
  problem.drift = metric.drift ? &*metric.drift : nullptr;
  problem.residual = metric.residual ? &*metric.residual : nullptr;
  problem.in = metric.in;
  problem.out = OutputRotation(in_.recipe, index, linear, problem.n);
  const auto bits = in_.bits.find(name);
  return QuantizeLinear(problem,
                        bits == in_.bits.end() ? in_.recipe : WithBits(in_.recipe, bits->second),
                        in_.pool, in_.stop);
}

absl::Status BlockQuantizer::RunGroup(int64_t index, Group group, Block& block,
                                      OnLinear on_linear) {
  const int64_t k = InputsOf(config_, group);
  if (auto status = TweakNorm(group, block); !status.ok()) return status;
  const auto metric = MeasureInputs(index, group);
  if (!metric.ok()) return metric.status();
  const auto quantized = std::make_shared<StackedWeights>(k);
  const auto original = std::make_shared<StackedWeights>(k);
  for (const std::string& linear : LinearsOf(config_, group)) {
    std::vector<float>& w = block.weights[linear];
    const absl::Time begin = absl::Now();
    const auto solved = Solve(index, linear, w, *metric);
    if (!solved.ok()) return solved.status();
    const std::string name = BlockTensor(index, linear + ".weight");
    auto status = in_.writer.AddLinear(name, solved->packed.view());
    if (!status.ok()) return status;
    on_linear(MakeReport(name, *solved), absl::Now() - begin);
    if (in_.stream != nullptr) {
      std::vector<float> served(w.size());
      status = DecodeWeight(solved->packed.view(), served.data());
      if (!status.ok()) return status;
      quantized->Add(std::move(served));
    }
    if (in_.reference != nullptr) original->Add(std::move(w));
    w = {};
  }
  if (in_.stream != nullptr) {
    auto status = in_.stream->Advance(group, quantized);
    if (!status.ok()) return status;
  }
  return in_.reference == nullptr ? absl::OkStatus() : in_.reference->Advance(group, original);
}

// `tweaked` norms by tensor name, as they are used: what is stored lacks the family's offset.
absl::Status AddBlockVectors(const Checkpoint& checkpoint, int64_t block, const Recipe& recipe,
                             ThreadPool& pool, const std::function<bool()>& stop,
                             PackedModelWriter& writer,
                             const std::map<std::string, NormParams>& tweaked) {
  const std::string prefix = BlockTensor(block, "");
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (tensor.name.rfind(prefix, 0) != 0 || IsBlockLinear(tensor)) continue;
    auto stored = PrepareTensor(checkpoint, tensor, recipe, pool, stop);
    if (!stored.ok()) return stored.status();
    if (const auto norm = tweaked.find(tensor.name); norm != tweaked.end()) {
      stored->values = norm->second.weight;
      for (float& v : stored->values) v -= checkpoint.config().norm_weight_offset;
    }
    if (auto status = AddTensor(tensor, *stored, writer); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace babai
