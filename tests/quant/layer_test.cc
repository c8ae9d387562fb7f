// QuantizeLinear: what is packed is what was certified; bad input is refused by name.
#include "server/quant/layer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/reason/reason.h"
#include "tests/quant/problem.h"

namespace babai {
namespace {

using testing_quant::MakeProblem;
using testing_quant::Problem;

class LayerTest : public testing::Test {
 protected:
  absl::StatusOr<QuantizedLinear> Quantize(const Problem& p, const Factor* factor,
                                           const Recipe& recipe) {
    return QuantizeLinear(ProblemOf(p, factor), recipe, pool_, nullptr);
  }
  static LinearProblem ProblemOf(const Problem& p, const Factor* factor) {
    LinearProblem problem;
    problem.w = p.w;
    problem.n = p.n;
    problem.k = p.k;
    problem.factor = factor;
    return problem;
  }
  ThreadPool pool_{2};
};

const PackedInt& Ints(const QuantizedLinear& linear) {
  return std::get<PackedInt>(linear.packed.base);
}

// tr((w - q) (h + damping) (w - q)') of the packed matrix, as a reader decodes it.
double DecodedLoss(const Problem& p, const PackedLinear& packed, double damping) {
  std::vector<float> q(p.n * p.k);
  EXPECT_TRUE(DecodeWeight(packed.view(), q.data()).ok());
  double loss = 0;
  for (int64_t r = 0; r < p.n; ++r) {
    for (int64_t i = 0; i < p.k; ++i) {
      for (int64_t j = 0; j < p.k; ++j) {
        const double ei = p.w[r * p.k + i] - q[r * p.k + i], ej = p.w[r * p.k + j] - q[r * p.k + j];
        loss += ei * (p.h[i * p.k + j] + (i == j ? damping : 0)) * ej;
      }
    }
  }
  return loss;
}

TEST_F(LayerTest, CertifiesWhatItPacked) {
  const Problem p = MakeProblem(45, 128, 300, 1);
  for (const char* preset : {"rtn", "gptq", "babai"}) {
    for (int bits : {2, 3, 4, 8}) {
      for (bool symmetric : {false, true}) {
        Recipe recipe = *PresetRecipe(preset);
        recipe.bits = bits;
        recipe.symmetric = symmetric;
        const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
        const auto q = Quantize(p, &factor, recipe);
        ASSERT_TRUE(q.ok()) << q.status();
        const Certificate& c = q->certificate;
        // fp32 sums of k terms, relative to the terms.
        EXPECT_NEAR(c.proxy_loss, DecodedLoss(p, q->packed, factor.damping),
                    128 * 1.2e-7 * c.reference_loss);
        EXPECT_DOUBLE_EQ(c.relative_error, std::sqrt(c.proxy_loss / c.reference_loss));
        EXPECT_EQ(Ints(*q).view().symmetric(), symmetric);
        EXPECT_DOUBLE_EQ(c.bits_per_weight,
                         bits + (16 + (symmetric ? 0 : 8 * std::ceil(bits / 8.0))) / 128.0);
        EXPECT_GT(c.entropy_bits, 0);
        EXPECT_LE(c.entropy_bits, bits);
        EXPECT_GT(c.rate_gap_bits, 0);
        EXPECT_EQ(c.damping, factor.damping);
        if (c.clip_rate == 0) {
          EXPECT_LE(c.proxy_loss, c.babai_bound);
        }
      }
    }
  }
}

// Rotations are undone by the reader: the certificate is of the weight in the model's own basis.
TEST_F(LayerTest, CertifiesEveryPresetInTheModelsBasis) {
  const Problem p = MakeProblem(48, 192, 500, 21);
  for (const std::string& preset : PresetNames()) {
    if (preset == "dense") continue;
    Recipe recipe = *PresetRecipe(preset);
    recipe.allocation = Allocation::kEqual;
    if (recipe.grid == GridKind::kUniform) recipe.target_bits = 0;
    LinearProblem problem = ProblemOf(p, nullptr);
    if (recipe.rotation != RotationKind::kNone) {
      problem.in = {RotationBlock(p.k), 7};
      problem.out = {RotationBlock(p.n), 8};
    }
    std::vector<double> h = p.h;
    RotateMetric(problem.in, h.data(), p.k);
    const Factor factor = *FactorHessian(std::move(h), recipe.order, recipe.damping);
    problem.factor = &factor;
    const auto q = QuantizeLinear(problem, recipe, pool_, nullptr);
    ASSERT_TRUE(q.ok()) << preset << ": " << q.status();
    const Certificate& c = q->certificate;
    // fp32 sums of k terms relative to the terms, and an fp32 rotation there and back.
    EXPECT_NEAR(c.proxy_loss, DecodedLoss(p, q->packed, factor.damping),
                2e-3 * c.proxy_loss + 400 * 1.2e-7 * c.reference_loss)
        << preset;
    EXPECT_LT(c.relative_error, 0.5) << preset;
    EXPECT_DOUBLE_EQ(c.bits_per_weight, 8.0 * q->packed.bytes() / (p.n * p.k)) << preset;
    if (recipe.target_bits > 0) {
      EXPECT_NEAR(c.bits_per_weight, recipe.target_bits, 0.1) << preset;
    }
    if (recipe.outlier_rule == OutlierRule::kOverflow) {
      EXPECT_LE(c.proxy_loss, c.babai_bound) << preset;
      EXPECT_NEAR(c.outliers, recipe.outliers, 0.3 * recipe.outliers) << preset;
    }
  }
}

// The factor 1 is among those tried, so no row can lose; at few bits nearly every row gains.
TEST_F(LayerTest, SweptScalesLoseLess) {
  const Problem p = MakeProblem(64, 192, 600, 24);
  for (const char* preset : {"babai", "nf4", "gptqt"}) {
    for (int bits : {2, 3, 4}) {
      Recipe recipe = *PresetRecipe(preset);
      recipe.bits = bits;
      recipe.scale_fit = ScaleFit::kLossWeighted;
      const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
      const double alone = Quantize(p, &factor, recipe)->certificate.proxy_loss;
      recipe.scale_fit = ScaleFit::kSwept;
      const auto swept = Quantize(p, &factor, recipe);
      ASSERT_TRUE(swept.ok()) << swept.status();
      EXPECT_LT(swept->certificate.proxy_loss, (bits == 2 ? 0.95 : 1) * alone) << preset << bits;
      EXPECT_NEAR(swept->certificate.proxy_loss, DecodedLoss(p, swept->packed, factor.damping),
                  1e-3 * alone);
    }
  }
}

TEST_F(LayerTest, RescalingNeverLosesAndHelpsAtTwoBits) {
  const Problem p = MakeProblem(64, 128, 400, 22);
  for (const char* preset : {"babai", "pot", "hptq"}) {
    Recipe recipe = *PresetRecipe(preset);
    recipe.bits = 2;
    if (recipe.target_bits > 0) recipe.target_bits = 2.5;
    const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
    const double before = Quantize(p, &factor, recipe)->certificate.proxy_loss;
    for (const Rescale rescale : {Rescale::kRows, Rescale::kColumns, Rescale::kBoth}) {
      recipe.rescale = rescale;
      const auto q = Quantize(p, &factor, recipe);
      ASSERT_TRUE(q.ok()) << q.status();
      EXPECT_LE(q->certificate.proxy_loss, before) << preset;
      EXPECT_NEAR(q->certificate.proxy_loss, DecodedLoss(p, q->packed, factor.damping),
                  1e-3 * before)
          << preset;
    }
  }
}

// With the inputs' drift known, the corrected weight serves the original outputs better.
TEST_F(LayerTest, DriftCorrectionBringsOutputsCloser) {
  const Problem p = MakeProblem(40, 96, 600, 23);
  std::vector<float> drifted = p.x;
  std::mt19937_64 rng(5);
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t c = 0; c < p.k; ++c)
      drifted[t * p.k + c] = 0.8f * drifted[t * p.k + c] + 0.1f * normal(rng);
  }
  Moments moments(p.k, pool_);
  ASSERT_TRUE(moments.Add(drifted.data(), p.tokens).ok());
  DriftMoments drift_moments(p.k, 0, p.tokens / 2, true, pool_);
  ASSERT_TRUE(drift_moments.Add(drifted.data(), p.x.data(), nullptr, nullptr, p.tokens).ok());
  const Drift drift = drift_moments.drift();
  const auto output_error = [&](Target target) {
    Recipe recipe = *PresetRecipe("babai");
    recipe.target = target;
    const Factor factor = *FactorHessian(moments.Hessian(), recipe.order, recipe.damping);
    LinearProblem problem = ProblemOf(p, &factor);
    problem.drift = &drift;
    const auto q = *QuantizeLinear(problem, recipe, pool_, nullptr);
    if (target == Target::kClosedForm) {
      EXPECT_GT(q.certificate.alpha, 0.5);
      EXPECT_LT(q.certificate.alpha, 1);
    }
    std::vector<float> served(p.w.size());
    EXPECT_TRUE(DecodeWeight(q.packed.view(), served.data()).ok());
    double error = 0;
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t r = 0; r < p.n; ++r) {
        double y = 0;
        for (int64_t c = 0; c < p.k; ++c)
          y += p.w[r * p.k + c] * p.x[t * p.k + c] - served[r * p.k + c] * drifted[t * p.k + c];
        error += y * y;
      }
    }
    return error;
  };
  const double none = output_error(Target::kNone);
  EXPECT_LT(output_error(Target::kClosedForm), 0.7 * none);
  EXPECT_LT(output_error(Target::kFixed), 0.7 * none);
}

TEST_F(LayerTest, BabaiBeatsGptqBeatsRtn) {
  for (int bits : {3, 4}) {
    const Problem p = MakeProblem(64, 256, 800, 2);
    std::vector<double> loss;
    for (const char* preset : {"babai", "gptq", "rtn"}) {
      Recipe recipe = *PresetRecipe(preset);
      recipe.bits = bits;
      const Factor factor = *FactorHessian(p.h, Order::kActivation, recipe.damping);
      loss.push_back(Quantize(p, &factor, recipe)->certificate.proxy_loss);
    }
    EXPECT_LT(loss[0], loss[1]);
    EXPECT_LT(loss[1], 0.7 * loss[2]);
  }
}

TEST_F(LayerTest, NearestNeedsNoFactor) {
  Problem p = MakeProblem(10, 96, 1, 3);
  p.h.assign(96 * 96, 0.0);  // the identity, by the damping of 1 below
  Recipe recipe = *PresetRecipe("rtn");
  const auto q = Quantize(p, nullptr, recipe);
  ASSERT_TRUE(q.ok()) << q.status();
  EXPECT_EQ(Ints(*q).group, 32);
  EXPECT_NEAR(q->certificate.proxy_loss, DecodedLoss(p, q->packed, 1.0),
              1e-5 * q->certificate.proxy_loss);
  EXPECT_LE(q->certificate.proxy_loss, q->certificate.babai_bound * 1.01);
}

// A column whose input never fires takes no part: its weights are rounded alone, and the codes of
// every other column are those of the problem without it.
TEST_F(LayerTest, DeadColumnsInfluenceNobody) {
  Problem p = MakeProblem(33, 64, 200, 4);
  const int64_t dead = 21;
  for (int64_t t = 0; t < p.tokens; ++t) p.x[t * p.k + dead] = 0;
  p.h = testing_quant::SecondMoment(p.x, p.tokens, p.k);
  Recipe recipe = *PresetRecipe("gptq");
  recipe.group_size = 32;
  const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
  EXPECT_EQ(factor.dead_columns, 1);
  const auto a = Quantize(p, &factor, recipe);
  const auto nearest = Quantize(p, nullptr, [&] {
    Recipe r = recipe;
    r.solver = Solver::kNearest;
    return r;
  }());
  for (int64_t r = 0; r < p.n; ++r) {
    EXPECT_EQ(CodeAt(Ints(*a).view(), r, dead), CodeAt(Ints(*nearest).view(), r, dead));
    p.w[r * p.k + dead] *= 0.5f;  // still inside its group's range
  }
  const auto b = Quantize(p, &factor, recipe);
  int64_t moved_scales = 0;
  for (int64_t r = 0; r < p.n; ++r) {
    // A row whose extreme weight was the dead one gets another scale: not this test's business.
    if (Ints(*a).scales[2 * r] != Ints(*b).scales[2 * r]) {
      ++moved_scales;
      continue;
    }
    for (int64_t c = 0; c < p.k; ++c) {
      if (c != dead) {
        EXPECT_EQ(CodeAt(Ints(*a).view(), r, c), CodeAt(Ints(*b).view(), r, c));
      }
    }
  }
  EXPECT_LT(moved_scales, 10);
  EXPECT_EQ(b->certificate.dead_columns, 1);
}

TEST_F(LayerTest, DegenerateCalibrationStillGivesAValidResult) {
  for (int64_t tokens : {1, 3}) {  // far fewer than inputs
    const Problem p = MakeProblem(12, 64, tokens, 5);
    const Recipe recipe = *PresetRecipe("babai");
    const auto factor = FactorHessian(p.h, recipe.order, recipe.damping);
    ASSERT_TRUE(factor.ok()) << factor.status();
    const auto q = Quantize(p, &*factor, recipe);
    ASSERT_TRUE(q.ok()) << q.status();
    EXPECT_GT(q->certificate.damping, 0);
    EXPECT_LT(q->certificate.relative_error, 0.2);
  }
}

TEST_F(LayerTest, MassiveActivationsAreSurvived) {
  Problem p = MakeProblem(12, 128, 400, 12);
  for (int64_t t = 0; t < p.tokens; ++t) p.x[t * p.k + 77] *= t == 0 ? 1e5f : 100.0f;
  p.h = testing_quant::SecondMoment(p.x, p.tokens, p.k);
  const Recipe recipe = *PresetRecipe("babai");
  const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
  const auto q = Quantize(p, &factor, recipe);
  ASSERT_TRUE(q.ok()) << q.status();
  EXPECT_LT(q->certificate.relative_error, 0.1);
}

// No result rather than a wrong one: 1 / L_pp exceeds fp32.
TEST_F(LayerTest, FailsLoudlyWhenTheSweepOverflows) {
  Problem p = MakeProblem(4, 32, 100, 13);
  for (double& h : p.h) h *= 1e-90;
  const Recipe recipe = *PresetRecipe("babai");
  const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
  const auto q = Quantize(p, &factor, recipe);
  EXPECT_EQ(q.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(q.status()), reason::kHessianNotPositiveDefinite);
}

TEST_F(LayerTest, RefusesByName) {
  const Problem p = MakeProblem(4, 96, 200, 6);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  const auto refused = [&](const Recipe& recipe, const Factor* f, std::string_view field) {
    const auto q = Quantize(p, f, recipe);
    EXPECT_EQ(q.status().code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_EQ(FieldOf(q.status()), field);
  };
  Recipe recipe = *PresetRecipe("babai");
  recipe.group_size = 64;
  refused(recipe, &factor, "recipe.group_size");
  recipe.group_size = 32;
  refused(recipe, nullptr, "recipe.solver");
  recipe.bits = 5;
  refused(recipe, &factor, "recipe.bits");
  refused(*PresetRecipe("dense"), &factor, "recipe.solver");
  const Problem other = MakeProblem(1, 64, 200, 7);
  const Factor wrong = *FactorHessian(other.h, Order::kActivation, 0.01);
  refused(*PresetRecipe("babai"), &wrong, "weight");
  for (const int64_t rows : {int64_t{5}, int64_t{1} << 60}) {
    LinearProblem problem = ProblemOf(p, &factor);
    problem.n = rows;
    const auto q = QuantizeLinear(problem, *PresetRecipe("babai"), pool_, nullptr);
    EXPECT_EQ(FieldOf(q.status()), "weight");
  }
}

TEST_F(LayerTest, RefusesWeightsThatAreNotFinite) {
  Problem p = MakeProblem(4, 96, 200, 8);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  p.w[100] = std::nanf("");
  EXPECT_EQ(ReasonOf(Quantize(p, &factor, *PresetRecipe("babai")).status()),
            reason::kNonFiniteWeights);
}

TEST_F(LayerTest, OneGroupARow) {
  const Problem p = MakeProblem(5, 53, 200, 9);
  Recipe recipe = *PresetRecipe("babai");
  recipe.group_size = -1;
  const Factor factor = *FactorHessian(p.h, recipe.order, recipe.damping);
  const auto q = Quantize(p, &factor, recipe);
  ASSERT_TRUE(q.ok()) << q.status();
  EXPECT_EQ(Ints(*q).group, 53);
  EXPECT_EQ(Ints(*q).scales.size(), 5u);
}

TEST_F(LayerTest, StopsWhenAsked) {
  const Problem p = MakeProblem(200, 64, 200, 10);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  int asked = 0;
  const auto q = QuantizeLinear(ProblemOf(p, &factor), *PresetRecipe("babai"), pool_,
                                [&] { return ++asked == 3; });
  EXPECT_EQ(q.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ReasonOf(q.status()), reason::kCancelled);
}

TEST_F(LayerTest, SameBytesForAnyNumberOfThreads) {
  const Problem p = MakeProblem(130, 128, 300, 11);
  const Factor factor = *FactorHessian(p.h, Order::kActivation, 0.01);
  const auto want = Quantize(p, &factor, *PresetRecipe("babai"));
  for (int threads : {1, 3, 5}) {
    ThreadPool pool(threads);
    const auto got = QuantizeLinear(ProblemOf(p, &factor), *PresetRecipe("babai"), pool, nullptr);
    EXPECT_EQ(Ints(*got).codes, Ints(*want).codes);
    EXPECT_EQ(Ints(*got).scales, Ints(*want).scales);
    EXPECT_EQ(Ints(*got).zeros, Ints(*want).zeros);
    EXPECT_EQ(got->certificate.proxy_loss, want->certificate.proxy_loss);
  }
}

}  // namespace
}  // namespace babai
