#include "server/jobs/survey.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "server/engine/block.h"
#include "server/jobs/block_quantizer.h"
#include "server/jobs/evaluation.h"
#include "server/jobs/forward.h"
#include "server/quant/allocate.h"
#include "server/quant/layer.h"

namespace babai {
namespace {

constexpr int64_t kMomentTokens = 8192;
constexpr int64_t kSampleRows = 128;
// Tokens that sensitivities are measured on. Few are noisy, and many of a large model slow: every
// linear sends them through all blocks behind it.
constexpr int64_t kProbeLength = 128, kProbeWork = 10'000'000;
constexpr int64_t kFewestProbes = 4, kMostProbes = 16;
// Weight noise relative to the weights' rms: as much as 4 bits leave.
constexpr float kNoise = 0.08f;

std::vector<Sequence> FirstTokens(const std::vector<Sequence>& sequences, int64_t count,
                                  int64_t length) {
  std::vector<Sequence> out;
  for (int64_t s = 0; s < count && s < static_cast<int64_t>(sequences.size()); ++s) {
    const auto most = std::min(length, static_cast<int64_t>(sequences[s].size()));
    out.emplace_back(sequences[s].begin(), sequences[s].begin() + most);
  }
  return out;
}

// Linears whose noise is measured together: the two halves of a gated product count alike.
struct Site {
  Group group;
  std::vector<std::string> linears;
};
std::vector<Site> SitesOf(const ModelConfig& config) {
  return {{Group::kQkv, {"q"}},
          {Group::kQkv, {"k"}},
          {Group::kQkv, {"v"}},
          {Group::kO, {"o"}},
          {Group::kGateUp, LinearsOf(config, Group::kGateUp)},
          {Group::kDown, {"down"}}};
}

int64_t ProbeSequences(const ModelConfig& config) {
  const int64_t block = config.hidden * (2 * config.q_rows() + 2 * config.kv_rows() +
                                         config.intermediate * (config.gated_mlp ? 3 : 2));
  return std::clamp(kProbeWork / std::max<int64_t>(block, 1), kFewestProbes, kMostProbes);
}

class Survey {
 public:
  explicit Survey(const SurveyInputs& inputs)
      : in_(inputs),
        config_(inputs.checkpoint.config()),
        stream_(config_, MomentSequences(inputs), in_.pool, in_.stop),
        probe_(config_, FirstTokens(inputs.sequences, ProbeSequences(config_), kProbeLength),
               in_.pool, in_.stop) {}

  absl::Status Run(absl::FunctionRef<void(double)> progress);
  // Losses become costs by the sensitivities.
  std::vector<RateCurve> curves() const;
  const std::vector<std::string>& names() const { return names_; }

 private:
  using Weights = std::map<std::string, std::vector<float>>;
  using Stacks = std::map<Group, std::shared_ptr<StackedWeights>>;
  // Noise in the weights of a site, and its group's weights with it.
  struct Noise {
    Group group;
    std::shared_ptr<StackedWeights> noise, noisy;
  };
  // The probe's hidden states with noise at one site.
  struct Variant {
    std::vector<float> hidden;
    double energy = 0;  // of the noise in the site's outputs, a token
    size_t first_linear = 0, linears = 0;
  };

  static std::vector<Sequence> MomentSequences(const SurveyInputs& inputs) {
    const auto length = static_cast<int64_t>(inputs.sequences[0].size());
    return FirstTokens(inputs.sequences, std::max<int64_t>(1, kMomentTokens / length), length);
  }
  absl::Status Embed();
  absl::Status SurveyBlock(int64_t block);
  absl::Status MeasureGroup(int64_t block, Group group, const Weights& weights,
                            std::shared_ptr<StackedWeights> stack);
  absl::StatusOr<RateCurve> MeasureLinear(const std::vector<float>& w, int64_t k,
                                          const Factor& factor, const Rotation& in);
  Noise MakeNoise(const Site& site, const Weights& weights);
  absl::Status ProbeBlock(int64_t block, const BlockParams& params, const Weights& weights,
                          const Stacks& stacks);
  absl::Status RunProbe(int64_t block, const BlockParams& params, const Stacks& stacks,
                        const Noise* noise, Variant& variant);
  absl::Status AddEnergy(const Noise& noise, double& energy);
  absl::Status MeasureVariants();

  const SurveyInputs in_;
  const ModelConfig& config_;
  CalibrationStream stream_, probe_;
  std::vector<Variant> variants_;  // the first is without noise
  std::vector<std::string> names_;
  std::vector<RateCurve> losses_;
  std::vector<double> sensitivities_;
  std::mt19937_64 random_{1};
};

absl::Status Survey::Embed() {
  const auto embedding = in_.checkpoint.Read("embed.weight");
  if (!embedding.ok()) return embedding.status();
  const auto params = LoadModelParams(config_, SourceOf(in_.checkpoint));
  if (!params.ok()) return params.status();
  stream_.Embed(*embedding, *params);
  probe_.Embed(*embedding, *params);
  variants_.push_back({probe_.all_hidden()});
  return absl::OkStatus();
}

absl::Status Survey::Run(absl::FunctionRef<void(double)> progress) {
  if (auto status = Embed(); !status.ok()) return status;
  for (int64_t block = 0; block < config_.layers; ++block) {
    if (auto status = SurveyBlock(block); !status.ok()) return status;
    progress(static_cast<double>(block + 1) / static_cast<double>(config_.layers + 1));
  }
  return MeasureVariants();
}

absl::Status Survey::SurveyBlock(int64_t block) {
  const auto params = LoadBlockParams(config_, block, SourceOf(in_.checkpoint));
  if (!params.ok()) return params.status();
  Weights weights;
  for (const Group group : kGroups) {
    for (const std::string& linear : LinearsOf(config_, group)) {
      auto values = in_.checkpoint.Read(BlockTensor(block, linear + ".weight"));
      if (!values.ok()) return values.status();
      weights[linear] = *std::move(values);
    }
  }
  Stacks stacks;
  for (const Group group : kGroups) {
    stacks[group] = std::make_shared<StackedWeights>(InputsOf(config_, group));
    for (const std::string& linear : LinearsOf(config_, group))
      stacks[group]->Add(weights.at(linear));
  }
  if (auto status = ProbeBlock(block, *params, weights, stacks); !status.ok()) return status;
  stream_.BeginBlock(block, &*params);
  for (const Group group : kGroups) {
    auto status = MeasureGroup(block, group, weights, stacks[group]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Survey::Noise Survey::MakeNoise(const Site& site, const Weights& weights) {
  const int64_t k = InputsOf(config_, site.group);
  Noise out = {site.group, std::make_shared<StackedWeights>(k),
               std::make_shared<StackedWeights>(k)};
  for (const std::string& linear : LinearsOf(config_, site.group)) {
    std::vector<float> w = weights.at(linear);
    if (std::count(site.linears.begin(), site.linears.end(), linear) > 0) {
      double square = 0;
      for (const float v : w) square += static_cast<double>(v) * v;
      const double rms = std::sqrt(square / static_cast<double>(w.size()));
      std::normal_distribution<float> normal(0, kNoise * static_cast<float>(rms));
      std::vector<float> delta(w.size());
      for (size_t i = 0; i < w.size(); ++i) w[i] += delta[i] = normal(random_);
      out.noise->Add(std::move(delta));
    }
    out.noisy->Add(std::move(w));
  }
  return out;
}

// Brings every variant through the block, and begins those with noise in it.
absl::Status Survey::ProbeBlock(int64_t block, const BlockParams& params, const Weights& weights,
                                const Stacks& stacks) {
  const std::vector<float> before = variants_[0].hidden;
  for (Variant& variant : variants_) {
    auto status = RunProbe(block, params, stacks, nullptr, variant);
    if (!status.ok()) return status;
  }
  size_t linear = names_.size();
  for (const Site& site : SitesOf(config_)) {
    Variant variant{before, 0, linear, site.linears.size()};
    const Noise noise = MakeNoise(site, weights);
    auto status = RunProbe(block, params, stacks, &noise, variant);
    if (!status.ok()) return status;
    linear += site.linears.size();
    variants_.push_back(std::move(variant));
  }
  return absl::OkStatus();
}

absl::Status Survey::RunProbe(int64_t block, const BlockParams& params, const Stacks& stacks,
                              const Noise* noise, Variant& variant) {
  probe_.SetHidden(std::move(variant.hidden));
  probe_.BeginBlock(block, &params);
  for (const Group group : kGroups) {
    const bool here = noise != nullptr && noise->group == group;
    if (here) {
      if (auto status = AddEnergy(*noise, variant.energy); !status.ok()) return status;
    }
    auto status = probe_.Advance(group, here ? noise->noisy : stacks.at(group));
    if (!status.ok()) return status;
  }
  variant.hidden = probe_.all_hidden();
  return absl::OkStatus();
}

// Of the noise in the outputs, a token.
absl::Status Survey::AddEnergy(const Noise& noise, double& energy) {
  const auto tokens_in_all = static_cast<double>(probe_.sequences() * probe_.length());
  std::vector<float> y;
  return probe_.Inputs(noise.group, probe_.sequences(), [&](const float* x, int64_t tokens) {
    y.resize(tokens * noise.noise->outputs());
    auto status = noise.noise->Multiply(x, tokens, y.data(), in_.pool);
    for (const float v : y) energy += static_cast<double>(v) * v / tokens_in_all;
    return status;
  });
}

absl::Status Survey::MeasureGroup(int64_t block, Group group, const Weights& weights,
                                  std::shared_ptr<StackedWeights> stack) {
  const int64_t k = InputsOf(config_, group);
  std::vector<double> hessian;
  double damping = in_.recipe.damping;
  {
    Moments moments(k, in_.pool);
    const auto status =
        stream_.Inputs(group, stream_.sequences(),
                       [&](const float* x, int64_t tokens) { return moments.Add(x, tokens); });
    if (!status.ok()) return status;
    hessian = moments.Hessian(), damping = DampingFor(damping, moments.tokens(), k);
  }
  const Rotation in = InputRotation(in_.recipe, block, group, k);
  RotateMetric(in, hessian.data(), k);
  const auto factor = FactorHessian(std::move(hessian), in_.recipe.order, damping);
  if (!factor.ok()) return factor.status();
  for (const std::string& linear : LinearsOf(config_, group)) {
    auto curve = MeasureLinear(weights.at(linear), k, *factor, in);
    if (!curve.ok()) return curve.status();
    names_.push_back(BlockTensor(block, linear + ".weight"));
    losses_.push_back(*std::move(curve));
  }
  return stream_.Advance(group, std::move(stack));
}

// Rows spread evenly over the linear stand for all of them.
absl::StatusOr<RateCurve> Survey::MeasureLinear(const std::vector<float>& w, int64_t k,
                                                const Factor& factor, const Rotation& in) {
  const auto n = static_cast<int64_t>(w.size()) / k;
  const int64_t rows = std::min(n, kSampleRows);
  std::vector<float> sample;
  for (int64_t i = 0; i < rows; ++i) {
    const auto row = w.begin() + i * n / rows * k;
    sample.insert(sample.end(), row, row + k);
  }
  Recipe recipe = in_.recipe;
  recipe.target = Target::kNone;
  recipe.residual = false;
  recipe.rescale = Rescale::kNone;
  recipe.solver = Solver::kBabai;
  recipe.beam = 1;
  recipe.descent_passes = 0;
  RateCurve curve;
  curve.weights = n * k;
  // Around what the target can mean for one linear; in between costs are interpolated.
  const std::vector<double> sizes = recipe.codes_integers() ? std::vector<double>{1.5, 2.5, 4, 6}
                                                            : std::vector<double>{2, 3, 4, 8};
  for (const double size : sizes) {
    LinearProblem problem;
    problem.w = sample;
    problem.n = rows;
    problem.k = k;
    problem.factor = &factor;
    problem.in = in;
    const auto solved = QuantizeLinear(problem, WithBits(recipe, size), in_.pool, in_.stop);
    if (!solved.ok()) return solved.status();
    curve.bits.push_back(solved->certificate.bits_per_weight);
    curve.costs.push_back(solved->certificate.proxy_loss * static_cast<double>(n) /
                          static_cast<double>(rows));
  }
  return curve;
}

absl::Status Survey::MeasureVariants() {
  auto params = LoadModelParams(config_, SourceOf(in_.checkpoint));
  if (!params.ok()) return params.status();
  auto head = in_.checkpoint.Read(config_.tied_embedding ? "embed.weight" : "head.weight");
  if (!head.ok()) return head.status();
  StackedWeights stack(config_.hidden);
  stack.Add(*std::move(head));
  std::vector<const std::vector<float>*> noisy;
  for (size_t i = 1; i < variants_.size(); ++i) noisy.push_back(&variants_[i].hidden);
  const auto kls = MeanKls(config_, *params, stack, variants_[0].hidden, noisy, in_.pool, in_.stop);
  if (!kls.ok()) return kls.status();
  sensitivities_.assign(names_.size(), 0);
  for (size_t i = 1; i < variants_.size(); ++i) {
    const Variant& variant = variants_[i];
    const double sensitivity = variant.energy > 0 ? (*kls)[i - 1] / variant.energy : 0;
    std::fill_n(sensitivities_.begin() + static_cast<int64_t>(variant.first_linear),
                variant.linears, sensitivity);
  }
  return absl::OkStatus();
}

std::vector<RateCurve> Survey::curves() const {
  std::vector<RateCurve> curves = losses_;
  for (size_t i = 0; i < curves.size(); ++i) {
    // A linear that nothing depends on must still be comparable.
    constexpr double kLeast = 1e-12;
    for (double& cost : curves[i].costs)
      cost = std::max(cost * std::max(sensitivities_[i], 0.0), kLeast);
  }
  return curves;
}

}  // namespace

absl::StatusOr<std::map<std::string, double>> AllocateModelBits(
    const SurveyInputs& inputs, double target_bits, absl::FunctionRef<void(double)> progress) {
  Survey survey(inputs);
  if (auto status = survey.Run(progress); !status.ok()) return status;
  std::vector<RateCurve> curves = survey.curves();
  const bool integers = inputs.recipe.codes_integers();
  if (integers) {
    for (RateCurve& c : curves) c = Refine(c, 1.125, 8, 1.0 / 32);
  }
  const auto chosen = AllocateBits(curves, target_bits);
  if (!chosen.ok()) return chosen.status();
  constexpr int kBits[] = {2, 3, 4, 8};
  std::map<std::string, double> bits;
  for (size_t i = 0; i < curves.size(); ++i) {
    bits[survey.names()[i]] = integers ? curves[i].bits[(*chosen)[i]] : kBits[(*chosen)[i]];
  }
  return bits;
}

}  // namespace babai
