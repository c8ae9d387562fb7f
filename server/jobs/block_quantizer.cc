#include "server/jobs/block_quantizer.h"

#include <cstdio>
#include <utility>

#include "server/jobs/stored_tensors.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// Says in which block it happened; the message is the solver's own.
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
  report.rows = linear.packed.rows;
  report.cols = linear.packed.cols;
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
  return report;
}

std::vector<float> Decode(const PackedInt& packed, ThreadPool& pool) {
  std::vector<float> values(packed.rows * packed.cols);
  pool.ParallelFor(packed.rows, 1, [&](int64_t begin, int64_t end) {
    DecodeRows(packed.view(), begin, end, values.data() + begin * packed.cols);
  });
  return values;
}

}  // namespace

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
  const auto params = LoadBlockParams(config_, index, SourceOf(in_.checkpoint));
  if (!params.ok()) return params.status();
  if (in_.stream != nullptr) in_.stream->BeginBlock(index, &*params);
  if (in_.reference != nullptr) in_.reference->BeginBlock(index, &*params);
  int done = 0;
  for (const Group group : kGroups) {
    if (auto status = RunGroup(index, group, block, on_linear); !status.ok()) return status;
    on_group(++done / static_cast<double>(std::size(kGroups)));
  }
  if (auto status = AddOthers(index); !status.ok()) return status;
  return in_.writer.FinishFile(BlockFileName(index));
}

absl::StatusOr<std::unique_ptr<Factor>> BlockQuantizer::MakeFactor(Group group) {
  if (in_.recipe.solver != Solver::kBabai) return nullptr;
  std::vector<double> hessian;
  {
    Moments moments(InputsOf(config_, group));
    const auto status =
        in_.stream->Inputs(group, in_.training,
                           [&](const float* x, int64_t tokens) { return moments.Add(x, tokens); });
    if (!status.ok()) return status;
    hessian = moments.Hessian();
  }
  auto factor = FactorHessian(std::move(hessian), in_.recipe.order, in_.recipe.damping);
  if (!factor.ok()) return factor.status();
  return std::make_unique<Factor>(*std::move(factor));
}

absl::Status BlockQuantizer::RunGroup(int64_t index, Group group, Block& block,
                                      OnLinear on_linear) {
  const int64_t k = InputsOf(config_, group);
  const auto factor = MakeFactor(group);
  if (!factor.ok()) return factor.status();
  StackedWeights quantized(k), original(k);
  for (const std::string& linear : LinearsOf(config_, group)) {
    std::vector<float>& w = block.weights[linear];
    const std::string name = BlockTensor(index, linear + ".weight");
    const absl::Time begin = absl::Now();
    auto solved = QuantizeLinear(w, static_cast<int64_t>(w.size()) / k, k, factor->get(),
                                 in_.recipe, in_.pool, in_.stop);
    if (!solved.ok()) return solved.status();
    if (auto status = in_.writer.AddPackedInt(name, solved->packed.view()); !status.ok())
      return status;
    on_linear(MakeReport(name, *solved), absl::Now() - begin);
    if (in_.stream != nullptr) quantized.Add(Decode(solved->packed, in_.pool));
    if (in_.reference != nullptr) original.Add(std::move(w));
    w = {};
  }
  if (in_.stream != nullptr) {
    auto status = in_.stream->Advance(group, std::move(quantized));
    if (!status.ok()) return status;
  }
  return in_.reference == nullptr ? absl::OkStatus()
                                  : in_.reference->Advance(group, std::move(original));
}

// Norms and biases.
absl::Status BlockQuantizer::AddOthers(int64_t index) {
  const std::string prefix = BlockTensor(index, "");
  for (const TensorInfo& tensor : in_.checkpoint.tensors()) {
    if (tensor.name.rfind(prefix, 0) != 0 || IsBlockLinear(tensor)) continue;
    auto stored = PrepareTensor(in_.checkpoint, tensor, in_.recipe, in_.pool, in_.stop);
    if (!stored.ok()) return stored.status();
    if (auto status = AddTensor(tensor, *stored, in_.writer); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace babai
