#include "server/jobs/quantize_job.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/engine/block.h"
#include "server/engine/linear_group.h"
#include "server/jobs/block_quantizer.h"
#include "server/jobs/calibration.h"
#include "server/jobs/device_quantizer.h"
#include "server/jobs/evaluation.h"
#include "server/jobs/job_progress.h"
#include "server/jobs/memory_plan.h"
#include "server/jobs/self_calibration.h"
#include "server/jobs/stored_tensors.h"
#include "server/jobs/survey.h"
#include "server/reason/reason.h"
#include "server/store/model_uri.h"
#include "server/store/sha256.h"
#include "server/text/tokenizer.h"

namespace babai {
namespace {

// Part of the content key: raised with every change that alters the bytes of a packed model.
constexpr std::string_view kQuantizerRevision = "2";

absl::Status CheckRequestId(const std::string& id) {
  constexpr size_t kMaxBytes = 128;
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (id.size() <= kMaxBytes && printable) return absl::OkStatus();
  return InvalidField("request_id", "must be at most 128 printable characters without spaces");
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenAllowedSource(const QuantizeSpec& spec,
                                                              const QuantizeEnvironment& env) {
  const auto uri = ModelUri::Parse(spec.source_uri, "source_uri");
  if (!uri.ok()) return uri.status();
  std::filesystem::path root;
  const auto path = ResolveLocal(*uri, env.model_roots, &root);
  if (!path.ok()) return path.status();
  return OpenCheckpoint(*path, root);
}

// Nearest rounding needs no calibration data, but is evaluated on it where the caller gives some.
bool UsesCalibration(const QuantizeSpec& spec) {
  if (spec.recipe.solver == Solver::kDense) return false;
  return spec.recipe.needs_moments() || spec.calibration.source != CalibrationSpec::Source::kSelf;
}

absl::StatusOr<std::string> DigestOfCalibration(const QuantizeSpec& spec, const ModelConfig& config,
                                                const QuantizeEnvironment& env) {
  if (!UsesCalibration(spec)) return std::string("none");
  return CalibrationDigest(spec.calibration, config, env.model_roots);
}

// Two recipes that do the same have one key, whatever they are called.
std::string RecipeKey(Recipe recipe) {
  recipe.preset.clear();
  return RecipeToJson(recipe);
}

std::string ContentKey(const Manifest& m, const Recipe& recipe) {
  Sha256 hash;
  hash.AddField(m.source_digest);
  hash.AddField(RecipeKey(recipe));
  hash.AddField(m.calibration_digest);
  hash.AddField(m.tool_version);
  hash.AddField(kQuantizerRevision);
  return hash.HexDigest();
}

absl::Status ModelExists(const std::string& name) {
  return Refuse(absl::StatusCode::kAlreadyExists, reason::kModelExists, "name",
                "a model named '" + name + "' exists and was made from something else; choose " +
                    "another name, delete it or ask to overwrite it");
}

// Whether the model of this name may be what the request would make, as far as can be told without
// reading the source's weights.
absl::Status CheckName(const QuantizeSpec& spec, const ModelConfig& config,
                       const QuantizeEnvironment& env) {
  if (spec.overwrite || !env.catalog->Exists(spec.name)) return absl::OkStatus();
  const auto manifest = env.catalog->ReadManifest(spec.name);
  const auto recipe = manifest.ok() ? RecipeFromJson(manifest->recipe_json) : manifest.status();
  const auto calibration = DigestOfCalibration(spec, config, env);
  if (!calibration.ok()) return calibration.status();
  const bool same = recipe.ok() && RecipeKey(*recipe) == RecipeKey(spec.recipe) &&
                    manifest->calibration_digest == *calibration &&
                    manifest->tool_version == BABAI_VERSION;
  return same ? absl::OkStatus() : ModelExists(spec.name);
}

// One run of a job. Each step either goes on or says why not.
class Run {
 public:
  Run(const Job& job, JobContext& context, const QuantizeEnvironment& env)
      : spec_(job.spec),
        context_(context),
        env_(env),
        progress_(context),
        pool_(env.threads),
        stop_([&context] { return context.cancelled(); }) {}

  absl::StatusOr<Manifest> operator()() {
    if (auto status = OpenSource(); !status.ok()) return status;
    auto earlier = EarlierModel();
    if (!absl::IsNotFound(earlier.status())) return earlier;
    if (auto status = CheckDisk(); !status.ok()) return status;
    if (auto status = CheckMemoryDemand(wants_device()); !status.ok()) return status;
    if (auto status = Calibrate(); !status.ok()) return status;
    if (auto status = BeginModel(); !status.ok()) return status;
    if (auto status = StartStreams(); !status.ok()) return status;
    if (auto status = WriteRest(); !status.ok()) return status;
    if (auto status = ShareOutBits(); !status.ok()) return status;
    if (auto status = WriteBlocks(); !status.ok()) return status;
    if (auto status = Evaluate(); !status.ok()) return status;
    return Commit();
  }

 private:
  const ModelConfig& config() const { return checkpoint_->config(); }
  bool dense() const { return spec_.recipe.solver == Solver::kDense; }
  std::string head_name() const { return config().tied_embedding ? "embed.weight" : "head.weight"; }

  absl::Status OpenSource();
  absl::StatusOr<Manifest> EarlierModel();
  absl::Status CheckDisk();
  absl::Status CheckMemoryDemand(bool on_device);
  absl::Status Calibrate();
  absl::Status BeginModel();
  absl::Status WriteRest();
  absl::Status EmbedStreams(const StoredTensorValues& embedding);
  absl::Status ShareOutBits();
  absl::Status WriteBlocks();
  absl::Status CopyBlocks();
  absl::Status Evaluate();
  absl::StatusOr<Manifest> Commit();
  void TakeSequences(CalibrationSet set);
  void WarnOfFewTokens(int64_t tokens);
  absl::Status StartStreams();
  void MakeStreams();
  absl::Status TakeDeviceStreams();
  // Whether blocks are to be quantized on the GPU.
  bool wants_device() const {
    return env_.use_device && DeviceQuantizes(spec_.recipe) && spec_.recipe.needs_moments();
  }

  const QuantizeSpec& spec_;
  JobContext& context_;
  const QuantizeEnvironment& env_;
  ProgressReporter progress_;
  ThreadPool pool_;
  const std::function<bool()> stop_;

  std::unique_ptr<Checkpoint> checkpoint_;
  Manifest manifest_;
  std::unique_ptr<PackedModelWriter> writer_;
  std::unique_ptr<CalibrationStream> stream_, reference_;
  int64_t training_ = 0, held_out_ = 0;
  // Where the held-out sequences of each stream begin.
  int64_t stream_first_ = 0, reference_first_ = 0;
  std::vector<Sequence> sequences_;          // training, then held out; empty: no calibration
  std::unique_ptr<DeviceQuantizer> device_;  // instead of the streams, until the evaluation
  Recipe recipe_;                            // as asked for, with a size turned into bits
  std::map<std::string, double> bits_;
};

absl::Status Run::OpenSource() {
  progress_.Enter(JobState::kFetching, "reading the source", 0);
  auto checkpoint = OpenAllowedSource(spec_, env_);
  if (!checkpoint.ok()) return checkpoint.status();
  checkpoint_ = *std::move(checkpoint);
  auto digest = checkpoint_->Digest();
  if (!digest.ok()) return digest.status();
  auto calibration = DigestOfCalibration(spec_, config(), env_);
  if (!calibration.ok()) return calibration.status();

  manifest_.name = spec_.name;
  manifest_.tool_version = BABAI_VERSION;
  manifest_.source_uri = spec_.source_uri;
  manifest_.source_digest = *std::move(digest);
  manifest_.calibration_digest = *std::move(calibration);
  manifest_.content_key = ContentKey(manifest_, spec_.recipe);
  manifest_.recipe_json = RecipeToJson(spec_.recipe);
  manifest_.config_json = ModelConfigToJson(config());
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    int64_t elements = 1;
    for (const int64_t d : tensor.shape) elements *= d;
    manifest_.weights += elements;
  }
  context_.ReportContentKey(manifest_.content_key);
  return absl::OkStatus();
}

// The model of this name if it is the one asked for; NotFound: go on and make it.
absl::StatusOr<Manifest> Run::EarlierModel() {
  if (!env_.catalog->Exists(spec_.name)) return absl::NotFoundError("");
  auto earlier = env_.catalog->ReadManifest(spec_.name);
  if (earlier.ok() && earlier->content_key == manifest_.content_key) return earlier;
  return spec_.overwrite ? absl::NotFoundError("") : ModelExists(spec_.name);
}

absl::Status Run::CheckDisk() {
  constexpr int64_t kOverhead = int64_t{64} << 20;  // manifest, tokenizer, headers, the job table
  const auto bytes = PackedBytes(*checkpoint_, spec_.recipe);
  if (!bytes.ok()) return bytes.status();
  std::error_code error;
  const auto space = std::filesystem::space(env_.catalog->ModelDir("x").parent_path(), error);
  if (error || static_cast<int64_t>(space.available) >= *bytes + kOverhead) return absl::OkStatus();
  return Refuse(absl::StatusCode::kResourceExhausted, reason::kOutOfDisk, "",
                "the model needs " + std::to_string(*bytes + kOverhead) + " bytes of disk and " +
                    std::to_string(space.available) + " are free; delete models that are not used");
}

absl::Status Run::CheckMemoryDemand(bool on_device) {
  const CalibrationSpec& c = spec_.calibration;
  const bool evaluated = UsesCalibration(spec_);
  const int64_t length = SequenceLength(c, config());
  if (on_device) {
    return CheckMemory(PlanDeviceQuantizeMemory(config(), HeldOutSequences(c), length));
  }
  const int64_t training = spec_.recipe.needs_moments() ? c.samples : 0;
  return CheckMemory(PlanQuantizeMemory(config(), spec_.recipe, training,
                                        evaluated ? HeldOutSequences(c) : 0, length));
}

absl::Status Run::Calibrate() {
  if (!UsesCalibration(spec_)) return absl::OkStatus();
  const CalibrationSpec& calibration = spec_.calibration;
  if (calibration.source != CalibrationSpec::Source::kSelf) {
    progress_.Enter(JobState::kCalibrating, "tokenizing the calibration data", 0.02);
    auto set = LoadCalibration(calibration, *checkpoint_, env_.model_roots, stop_);
    if (!set.ok()) return set.status();
    TakeSequences(*std::move(set));
    return absl::OkStatus();
  }
  progress_.Enter(JobState::kCalibrating, "generating calibration data", 0.02);
  const int64_t held_out = HeldOutSequences(calibration);
  auto sequences = GenerateCalibration(
      *checkpoint_, calibration.samples + held_out, SequenceLength(calibration, config()),
      calibration.seed, pool_, [&](double part) { progress_.Generated(part); }, stop_);
  if (!sequences.ok()) return sequences.status();
  TakeSequences(SplitHeldOut(*std::move(sequences), held_out));
  return absl::OkStatus();
}

void Run::WarnOfFewTokens(int64_t tokens) {
  int64_t widest = 0;
  for (const LinearGroup group : kLinearGroups)
    widest = std::max(widest, InputsOf(config(), group));
  if (tokens >= 2 * widest) return;
  progress_.Warn(absl::StrCat("calibrated on ", tokens, " tokens, for linears of up to ", widest,
                              " inputs: errors in most directions go unseen; give at least ",
                              2 * widest, " tokens (calibration.samples times length)"));
}

// Training sequences, for moments, and then the held-out ones.
void Run::TakeSequences(CalibrationSet set) {
  if (!spec_.recipe.needs_moments()) set.training.clear();
  training_ = set.training.size();
  held_out_ = set.held_out.size();
  progress_.CalibrationTokens((training_ + held_out_) * set.length);
  if (training_ > 0) WarnOfFewTokens(training_ * set.length);
  sequences_ = std::move(set.training);
  sequences_.insert(sequences_.end(), set.held_out.begin(), set.held_out.end());
}

absl::Status Run::StartStreams() {
  if (sequences_.empty()) return absl::OkStatus();
  if (!wants_device()) {
    MakeStreams();
    return absl::OkStatus();
  }
  auto device = MakeDeviceQuantizer({*checkpoint_, spec_.recipe, *writer_, pool_, stop_, sequences_,
                                     training_, env_.beside_answers});
  if (device.ok()) {
    device_ = *std::move(device);
    if (!device_->warning().empty()) progress_.Warn(device_->warning());
    return absl::OkStatus();
  }
  // A library or a kernel is missing: the CPU needs neither.
  const absl::Status& why = device.status();
  if (!absl::IsFailedPrecondition(why) && !absl::IsInvalidArgument(why)) return why;
  progress_.Warn("quantized on the CPU: " + std::string(why.message()));
  if (auto status = CheckMemoryDemand(/*on_device=*/false); !status.ok()) return status;
  MakeStreams();
  return absl::OkStatus();
}

// The quantized model's stream takes all sequences; the original's only the held-out ones, unless
// the recipe compares the two.
void Run::MakeStreams() {
  const bool compares = spec_.recipe.needs_original();
  stream_first_ = training_;
  reference_first_ = compares ? training_ : 0;
  std::vector<Sequence> others(sequences_.begin() + (compares ? 0 : training_), sequences_.end());
  reference_ = std::make_unique<CalibrationStream>(config(), std::move(others), pool_, stop_);
  stream_ = std::make_unique<CalibrationStream>(config(), sequences_, pool_, stop_);
}

// For the evaluation, which the host makes.
absl::Status Run::TakeDeviceStreams() {
  std::vector<Sequence> held_out(sequences_.begin() + training_, sequences_.end());
  for (const auto& [model, stream] : {std::pair{DeviceQuantizer::Model::kQuantized, &stream_},
                                      std::pair{DeviceQuantizer::Model::kOriginal, &reference_}}) {
    auto hidden = device_->Hidden(model);
    if (!hidden.ok()) return hidden.status();
    *stream = std::make_unique<CalibrationStream>(config(), held_out, pool_, stop_);
    (*stream)->SetHidden(*std::move(hidden));
  }
  device_.reset();
  return absl::OkStatus();
}

absl::Status Run::BeginModel() {
  auto writer = PackedModelWriter::Create(env_.catalog->NewStagingDir(spec_.name),
                                          env_.catalog->ModelDir(spec_.name), spec_.overwrite);
  if (!writer.ok()) return writer.status();
  writer_ = *std::move(writer);
  if (checkpoint_->tokenizer().kind == TokenizerSource::Kind::kNone) {
    progress_.Warn("the source has no tokenizer: the model takes and gives token ids only");
    return absl::OkStatus();
  }
  const auto tokenizer = MakeTokenizer(checkpoint_->tokenizer());
  return tokenizer.ok() ? (*tokenizer)->Save(writer_->staging_dir()) : tokenizer.status();
}

absl::Status Run::WriteRest() {
  progress_.Enter(JobState::kQuantizing, "storing the embeddings", 0.1);
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    if (IsInBlock(tensor)) continue;
    if (stop_()) return absl::CancelledError("stopped");
    const auto stored = PrepareTensor(*checkpoint_, tensor, spec_.recipe, pool_, stop_);
    if (!stored.ok()) return stored.status();
    if (auto status = AddTensor(tensor, *stored, *writer_); !status.ok()) return status;
    if (tensor.name != "embed.weight" || (stream_ == nullptr && device_ == nullptr)) continue;
    if (auto status = EmbedStreams(*stored); !status.ok()) return status;
  }
  return writer_->FinishFile("rest.safetensors");
}

absl::Status Run::EmbedStreams(const StoredTensorValues& embedding) {
  const auto served =
      LoadModelParams(config(), SourceAsServed(*checkpoint_, spec_.recipe, pool_, stop_));
  if (!served.ok()) return served.status();
  if (stream_ != nullptr) stream_->Embed(embedding.values, *served);
  const auto original = checkpoint_->Read("embed.weight");
  if (!original.ok()) return original.status();
  const auto params = LoadModelParams(config(), SourceOf(*checkpoint_));
  if (!params.ok()) return params.status();
  if (device_ != nullptr) return device_->Embed(embedding.values, *served, *original, *params);
  reference_->Embed(*original, *params);
  return absl::OkStatus();
}

// Turns a size into bits a weight of the linears, and those into bits of each where they may
// differ.
absl::Status Run::ShareOutBits() {
  recipe_ = spec_.recipe;
  if (recipe_.target_bytes != 0) {
    const auto target = TargetBits(*checkpoint_, recipe_);
    if (!target.ok()) return target.status();
    recipe_.target_bits = *target;
    recipe_.target_bytes = 0;
  }
  if (dense() || recipe_.allocation != Allocation::kHulls) return absl::OkStatus();
  progress_.Enter(JobState::kCalibrating, "measuring what each layer's bits are worth", 0.1);
  const auto bits =
      AllocateModelBits({*checkpoint_, recipe_, sequences_, pool_, stop_}, recipe_.target_bits,
                        [&](double part) { progress_.Surveyed(part); });
  if (!bits.ok()) return bits.status();
  bits_ = *bits;
  return absl::OkStatus();
}

absl::Status Run::WriteBlocks() {
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    if (!IsBlockLinear(tensor) || tensor.source_dtype != DType::kQuantized) continue;
    progress_.Warn(
        "the source's weights are already quantized (" + tensor.source_type +
        "): errors are measured against them, not against the model they were made from");
    break;
  }
  progress_.BeginBlocks(config().layers, device_ != nullptr            ? "on the GPU"
                                         : env_.use_device && !dense() ? "on the CPU"
                                                                       : "");
  if (dense()) return CopyBlocks();
  const auto on_linear = [&](const LinearReport& linear, absl::Duration took) {
    manifest_.linears.push_back(linear);
    progress_.Linear(linear, took);
  };
  const auto on_group = [&](int64_t block, double part) { progress_.BlockPart(block, part); };
  if (device_ != nullptr) {
    auto status = device_->Run(on_linear, on_group);
    return status.ok() ? TakeDeviceStreams() : status;
  }
  QuantizerInputs inputs{*checkpoint_, recipe_, *writer_, pool_, stop_};
  inputs.bits = bits_;
  inputs.stream = stream_.get();
  inputs.training = training_;
  inputs.reference = reference_.get();
  return BlockQuantizer(inputs).Run(on_linear, on_group);
}

absl::Status Run::CopyBlocks() {
  for (int64_t block = 0; block < config().layers; ++block) {
    const std::string prefix = BlockTensor(block, "");
    for (const TensorInfo& tensor : checkpoint_->tensors()) {
      if (tensor.name.rfind(prefix, 0) != 0) continue;
      if (stop_()) return absl::CancelledError("stopped");
      const auto stored = PrepareTensor(*checkpoint_, tensor, spec_.recipe, pool_, stop_);
      if (!stored.ok()) return stored.status();
      if (auto status = AddTensor(tensor, *stored, *writer_); !status.ok()) return status;
    }
    if (auto status = writer_->FinishFile(BlockFileName(block)); !status.ok()) return status;
    progress_.BlockPart(block, 1);
  }
  return absl::OkStatus();
}

absl::Status Run::Evaluate() {
  const auto Stacked = [&](std::vector<float> head) {
    auto stack = std::make_shared<StackedWeights>(config().hidden);
    stack->Add(std::move(head));
    return stack;
  };
  if (stream_ == nullptr) return absl::OkStatus();
  progress_.Enter(JobState::kEvaluating, "evaluating on held-out tokens", 0.95);
  const TensorSource source = SourceOf(*checkpoint_);
  const TensorSource served = SourceAsServed(*checkpoint_, spec_.recipe, pool_, stop_);
  const auto params = LoadModelParams(config(), source);
  if (!params.ok()) return params.status();
  const auto served_params = LoadModelParams(config(), served);
  if (!served_params.ok()) return served_params.status();
  auto head = source.read(head_name());
  if (!head.ok()) return head.status();
  auto served_head = served.read(head_name());
  if (!served_head.ok()) return served_head.status();
  const auto evaluation = EvaluateStreams(
      config(), {reference_.get(), reference_first_, &*params, Stacked(*std::move(head))},
      {stream_.get(), stream_first_, &*served_params, Stacked(*std::move(served_head))}, held_out_,
      pool_, stop_);
  if (!evaluation.ok()) return evaluation.status();
  manifest_.evaluation = *evaluation;
  manifest_.has_evaluation = true;
  return absl::OkStatus();
}

absl::StatusOr<Manifest> Run::Commit() {
  progress_.Enter(JobState::kEvaluating, "committing the model", 0.99);
  if (stop_()) return absl::CancelledError("stopped");
  manifest_.created = absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone());
  manifest_.warnings = progress_.warnings();
  auto committed = writer_->Commit(manifest_);
  if (!absl::IsAlreadyExists(committed.status())) return committed;
  // Another job made a model of this name meanwhile: perhaps the same one.
  return EarlierModel();
}

}  // namespace

absl::Status CheckQuantize(const QuantizeSpec& spec, const QuantizeEnvironment& env) {
  if (auto status = CheckRequestId(spec.request_id); !status.ok()) return status;
  if (auto status = ValidateModelName(spec.name, "name"); !status.ok()) return status;
  if (auto status = ValidateRecipe(spec.recipe); !status.ok()) return status;
  const auto checkpoint = OpenAllowedSource(spec, env);
  if (!checkpoint.ok()) return checkpoint.status();
  if (auto bytes = PackedBytes(**checkpoint, spec.recipe); !bytes.ok()) return bytes.status();
  if (UsesCalibration(spec)) {
    const auto status = CheckCalibration(spec.calibration, **checkpoint, env.model_roots);
    if (!status.ok()) return status;
  }
  return CheckName(spec, (*checkpoint)->config(), env);
}

absl::StatusOr<Manifest> RunQuantizeJob(const Job& job, JobContext& context,
                                        const QuantizeEnvironment& env) {
  return Run(job, context, env)();
}

}  // namespace babai
