// DeviceQuantizer on CUDA: everything of a model is enqueued on one stream, and the host waits for
// it only where a factorization needs decisions (order and damping, whether it succeeded).
#include <array>
#include <future>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine/cuda_calibration.h"
#include "server/engine/cuda_job_stream.h"
#include "server/engine/cuda_loader.h"
#include "server/engine/cuda_runner.h"
#include "server/engine/cuda_status.h"
#include "server/jobs/block_quantizer.h"
#include "server/jobs/device_quantizer.h"
#include "server/quant/cuda_group.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr size_t kGroupCount = std::size(kLinearGroups);

std::vector<CudaGroupShape> ShapesOf(const ModelConfig& config) {
  std::vector<CudaGroupShape> shapes;
  for (const LinearGroup group : kLinearGroups) {
    shapes.push_back({OutputsOf(config, group), InputsOf(config, group)});
  }
  return shapes;
}

// What the device reports becomes a refusal; what is one already stays.
absl::Status Refusal(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status) || !ReasonOf(status).empty()) return status;
  return DeviceRefusal(status);
}

absl::StatusOr<std::vector<BlockParams>> ReadParams(const Checkpoint& checkpoint) {
  std::vector<BlockParams> params;
  for (int64_t b = 0; b < checkpoint.config().layers; ++b) {
    auto block = LoadBlockParams(checkpoint.config(), b, SourceOf(checkpoint));
    if (!block.ok()) return block.status();
    params.push_back(*std::move(block));
  }
  return params;
}

// Device memory of a whole job.
struct CudaDemand {
  CudaCalibration::Shape quantized, original;
  int64_t bytes = 0;

  CudaDemand(const ModelConfig& config, const Recipe& recipe, int64_t training, int64_t held_out,
             int64_t length, bool keeps)
      : quantized{training + held_out, length, keeps}, original{held_out, length, keeps} {
    const std::vector<CudaGroupShape> shapes = ShapesOf(config);
    int64_t block = 0, widest = 0;
    for (const CudaGroupShape& shape : shapes) {
      block += shape.n() * shape.k, widest = std::max(widest, shape.n() * shape.k);
    }
    // Two blocks as they are read, two groups as each model has them, and the streams.
    bytes = 2 * 4 * block + 2 * 2 * 2 * widest + CudaGroupSolver::Plan(shapes, recipe).device +
            CudaCalibration::Bytes(config, quantized) + CudaCalibration::Bytes(config, original) +
            cuda::Cublas::kWorkspaceBytes + CudaLoader::kDeviceBytes;
  }
};

// A block's weights in fp32 on the device, one linear after another.
struct StagedBlock {
  cuda::Buffer weights;
  std::array<std::vector<const float*>, kGroupCount> linears;  // by group
};

class CudaQuantizer final : public DeviceQuantizer {
 public:
  CudaQuantizer(const DeviceQuantizerInputs& inputs, const CudaDemand& demand)
      : in_(inputs),
        config_(inputs.checkpoint.config()),
        demand_(demand),
        shapes_(ShapesOf(config_)) {}
  // A block that is being read writes to what is owned here.
  ~CudaQuantizer() override {
    if (next_.valid()) next_.wait();
    if (stream_.get() != nullptr) (void)stream_.Synchronize();
  }

  absl::Status Open();
  const std::string& warning() const override { return warning_; }
  absl::Status Embed(absl::Span<const float> served, const ModelParams& served_params,
                     absl::Span<const float> original, const ModelParams& params) override;
  absl::Status Run(absl::FunctionRef<void(const LinearReport&, absl::Duration)> on_linear,
                   absl::FunctionRef<void(int64_t, double)> on_group) override;
  absl::StatusOr<std::vector<float>> Hidden(Model model) const override;

 private:
  using OnLinear = absl::FunctionRef<void(const LinearReport&, absl::Duration)>;
  using OnGroup = absl::FunctionRef<void(int64_t, double)>;
  // A group that is solved on the device and not yet packed on the host.
  struct Pending {
    int64_t block = 0;
    size_t group = 0;
    absl::Time begin;
  };

  absl::StatusOr<cuda::Stream> MakeStream();
  absl::Status AllocateStages();
  absl::Status Read(int64_t block);
  void Prefetch(int64_t block);
  absl::Status RunGroup(int64_t block, size_t g, OnLinear on_linear, OnGroup on_group);
  absl::Status StackGroup(const StagedBlock& staged, size_t g);
  absl::Status Collect(OnLinear on_linear, OnGroup on_group);

  const DeviceQuantizerInputs in_;
  const ModelConfig& config_;
  const CudaDemand demand_;
  const std::vector<CudaGroupShape> shapes_;
  std::string warning_;
  cuda::Stream stream_;
  std::unique_ptr<cuda::Cublas> cublas_;
  std::unique_ptr<cuda::PhaseClock> clock_;
  std::unique_ptr<CudaLoader> loader_;
  std::unique_ptr<CudaCalibration> quantized_, original_;
  std::unique_ptr<CudaGroupSolver> solver_;
  StagedBlock staged_[2];  // blocks of even and of odd number
  // 16-bit weights of the MLP's first part, which its second needs, and of the last other group; of
  // the quantized model and of the original.
  cuda::Buffer mlp_[2], other_[2];
  std::future<absl::Status> next_;
  std::optional<Pending> pending_;
};

absl::Status CudaQuantizer::Open() {
  auto params = ReadParams(in_.checkpoint);
  if (!params.ok()) return params.status();
  auto stream = MakeStream();
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  auto cublas = cuda::Cublas::Make(stream_);
  if (!cublas.ok()) return cublas.status();
  cublas_ = *std::move(cublas);
  clock_ = std::make_unique<cuda::PhaseClock>(stream_, kCudaPhases);
  auto loader = CudaLoader::Make(CudaLoader::kSmallPieceBytes);
  if (!loader.ok()) return loader.status();
  loader_ = *std::move(loader);
  for (const auto& [shape, to] :
       {std::pair{demand_.quantized, &quantized_}, std::pair{demand_.original, &original_}}) {
    auto made = CudaCalibration::Make(config_, shape, *params, stream_, *cublas_);
    if (!made.ok()) return made.status();
    *to = *std::move(made);
    (*to)->OnForward([this] { return clock_->Enter(kForwardPhase); });
  }
  auto solver =
      CudaGroupSolver::Make(shapes_, in_.recipe, quantized_->dtype(), stream_, *cublas_, *clock_);
  if (!solver.ok()) return solver.status();
  solver_ = *std::move(solver);
  return AllocateStages();
}

absl::StatusOr<cuda::Stream> CudaQuantizer::MakeStream() {
  if (!in_.beside_answers) return cuda::Stream::Make();
  auto confined = MakeStreamBesideAnswers();
  if (confined.ok()) return confined;
  warning_ = absl::StrCat("answers wait for this job's kernels: ", confined.status().message());
  return cuda::Stream::Make();
}

absl::Status CudaQuantizer::AllocateStages() {
  int64_t block = 0, widest = 0;
  for (const CudaGroupShape& shape : shapes_) {
    block += shape.n() * shape.k, widest = std::max(widest, shape.n() * shape.k);
  }
  for (const auto& [bytes, buffer] :
       {std::pair{4 * block, &staged_[0].weights}, std::pair{4 * block, &staged_[1].weights},
        std::pair{2 * widest, &mlp_[0]}, std::pair{2 * widest, &mlp_[1]},
        std::pair{2 * widest, &other_[0]}, std::pair{2 * widest, &other_[1]}}) {
    auto made = cuda::Buffer::OnDevice(bytes);
    if (!made.ok()) return made.status();
    *buffer = *std::move(made);
  }
  for (StagedBlock& staged : staged_) {
    const float* at = staged.weights.data<float>();
    for (size_t g = 0; g < kGroupCount; ++g) {
      for (const int64_t rows : shapes_[g].rows) {
        staged.linears[g].push_back(at);
        at += rows * shapes_[g].k;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CudaQuantizer::Embed(absl::Span<const float> served, const ModelParams& served_params,
                                  absl::Span<const float> original, const ModelParams& params) {
  absl::Status status = quantized_->Embed(served, served_params, in_.sequences, *loader_);
  if (status.ok()) {
    const auto held_out = absl::MakeConstSpan(in_.sequences).subspan(in_.training);
    status = original_->Embed(original, params, held_out, *loader_);
  }
  return Refusal(status);
}

absl::StatusOr<std::vector<float>> CudaQuantizer::Hidden(Model model) const {
  const bool quantized = model == Model::kQuantized;
  auto hidden = (quantized ? quantized_ : original_)
                    ->Hidden(quantized ? in_.training : 0, demand_.original.sequences, *loader_);
  if (!hidden.ok()) return Refusal(hidden.status());
  return hidden;
}

// ---- reading ahead

// All linears of a block at once: decoding them to fp32 is what takes the time.
absl::Status CudaQuantizer::Read(int64_t block) {
  struct Part {
    const float* to;
    int64_t values;
    std::future<absl::StatusOr<std::vector<float>>> read;
  };
  std::vector<Part> parts;
  for (size_t g = 0; g < kGroupCount; ++g) {
    const std::vector<std::string> linears = LinearsOf(config_, kLinearGroups[g]);
    for (size_t i = 0; i < linears.size(); ++i) {
      const std::string name = BlockTensor(block, linears[i] + ".weight");
      parts.push_back(
          {staged_[block % 2].linears[g][i], shapes_[g].rows[i] * shapes_[g].k,
           std::async(std::launch::async, [this, name] { return in_.checkpoint.Read(name); })});
    }
  }
  for (Part& part : parts) {
    const auto values = part.read.get();
    if (!values.ok()) return values.status();
    if (static_cast<int64_t>(values->size()) != part.values) {
      return Refuse(absl::StatusCode::kInvalidArgument, reason::kInvalidModelFile, "",
                    "a matrix has another shape than the model's configuration says");
    }
    const absl::Status copied =
        loader_->Copy(values->data(), part.values * sizeof(float), const_cast<float*>(part.to));
    if (!copied.ok()) return copied;
  }
  return loader_->Finish();
}

void CudaQuantizer::Prefetch(int64_t block) {
  if (block >= config_.layers) return;
  next_ = std::async(std::launch::async, [this, block] { return Read(block); });
}

// ---- the blocks

absl::Status CudaQuantizer::Run(OnLinear on_linear, OnGroup on_group) {
  Prefetch(0);
  for (int64_t block = 0; block < config_.layers; ++block) {
    // The device is done with the block before this one once its last group is factored: what was
    // staged for it may be overwritten.
    absl::Status status = next_.get();
    Prefetch(block + 1);
    quantized_->BeginBlock(block);
    original_->BeginBlock(block);
    for (size_t g = 0; g < kGroupCount && status.ok(); ++g) {
      status =
          in_.stop() ? absl::CancelledError("stopped") : RunGroup(block, g, on_linear, on_group);
    }
    if (!status.ok()) return InBlock(block, Refusal(status));
  }
  return InBlock(config_.layers - 1, Refusal(Collect(on_linear, on_group)));
}

absl::Status CudaQuantizer::RunGroup(int64_t block, size_t g, OnLinear on_linear,
                                     OnGroup on_group) {
  const LinearGroup group = kLinearGroups[g];
  absl::Status status = solver_->Begin(shapes_[g]);
  if (status.ok()) {
    status = quantized_->Inputs(group, in_.training, [&](const void* x, int64_t tokens) {
      return solver_->AddInputs(x, tokens);
    });
  }
  if (status.ok()) status = StackGroup(staged_[block % 2], g);
  // The device has work for a while: time to pack what it did last.
  if (status.ok()) status = Collect(on_linear, on_group);
  const absl::Time begin = absl::Now();
  if (status.ok()) status = solver_->Solve();
  if (!status.ok()) return status;
  pending_ = {block, g, begin};
  const bool mlp = group == LinearGroup::kGateUp;
  const cuda::Buffer* weights = mlp ? mlp_ : other_;
  status = solver_->Decode(weights[0].data());
  if (status.ok()) status = quantized_->Advance(group, weights[0].data());
  return status.ok() ? original_->Advance(group, weights[1].data()) : status;
}

// The group's weights for the solver, and for the original model.
absl::Status CudaQuantizer::StackGroup(const StagedBlock& staged, size_t g) {
  const CudaGroupShape& shape = shapes_[g];
  for (size_t i = 0; i < shape.rows.size(); ++i) {
    const absl::Status stacked = solver_->StackWeights(static_cast<int>(i), staged.linears[g][i]);
    if (!stacked.ok()) return stacked;
  }
  const cuda::Buffer& weights = kLinearGroups[g] == LinearGroup::kGateUp ? mlp_[1] : other_[1];
  return cuda::FromCuda(
      cuda::Convert(staged.linears[g][0], cuda::StoredFloat::kFp32, shape.n() * shape.k,
                    weights.data(), quantized_->dtype(), {stream_.get(), false}),
      "Convert");
}

absl::Status CudaQuantizer::Collect(OnLinear on_linear, OnGroup on_group) {
  if (!pending_) return absl::OkStatus();
  const Pending p = *std::exchange(pending_, std::nullopt);
  const auto solved = solver_->Finish();
  if (!solved.ok()) return solved.status();
  const std::vector<std::string> linears = LinearsOf(config_, kLinearGroups[p.group]);
  const absl::Duration took = (absl::Now() - p.begin) / static_cast<int64_t>(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    const std::string name = BlockTensor(p.block, linears[i] + ".weight");
    auto status = in_.writer.AddLinear(name, (*solved)[i].packed.view());
    if (!status.ok()) return status;
    on_linear(MakeReport(name, (*solved)[i]), took);
  }
  const bool last = p.group + 1 == kGroupCount;
  if (last) {
    auto status =
        AddBlockVectors(in_.checkpoint, p.block, in_.recipe, in_.pool, in_.stop, in_.writer);
    if (status.ok()) status = in_.writer.FinishFile(BlockFileName(p.block));
    if (!status.ok()) return status;
  }
  on_group(p.block, static_cast<double>(p.group + 1) / kGroupCount);
  return clock_->Settle();
}

}  // namespace

bool DeviceQuantizes(const Recipe& recipe) { return CudaGroupSolver::Takes(recipe); }

absl::StatusOr<std::unique_ptr<DeviceQuantizer>> MakeDeviceQuantizer(
    const DeviceQuantizerInputs& inputs) {
  if (absl::Status s = CudaAvailable(); !s.ok()) return s;
  const ModelConfig& config = inputs.checkpoint.config();
  if (absl::Status s = CudaCalibration::Check(config); !s.ok()) return s;
  if (absl::Status s = CudaGroupSolver::Check(inputs.recipe, ShapesOf(config)); !s.ok()) return s;
  const auto memory = cuda::GetDeviceMemory();
  if (!memory.ok()) return Refusal(memory.status());
  const int64_t all = inputs.sequences.size(), held_out = all - inputs.training;
  const int64_t length = inputs.sequences.empty() ? 0 : inputs.sequences[0].size();
  constexpr int64_t kSpare = int64_t{1} << 30;  // fragments, libraries' own
  const auto demand_if = [&](bool keeps) {
    return CudaDemand(config, inputs.recipe, inputs.training, held_out, length, keeps);
  };
  CudaDemand demand = demand_if(/*keeps=*/true);
  if (demand.bytes + kSpare > memory->free) demand = demand_if(/*keeps=*/false);
  if (demand.bytes + kSpare > memory->free) {
    return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfMemory, "",
                  absl::StrCat("the job needs ", demand.bytes + kSpare,
                               " bytes of device memory and ", memory->free,
                               " are free; lower calibration.samples or length, or unload models"));
  }
  auto quantizer = std::make_unique<CudaQuantizer>(inputs, demand);
  if (absl::Status s = Refusal(quantizer->Open()); !s.ok()) return s;
  return quantizer;
}

}  // namespace babai
