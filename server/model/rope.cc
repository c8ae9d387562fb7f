#include "server/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace babai {
namespace {

// theta^(2i / d): the exponent and the power are fp32 values in the reference.
std::vector<float> BasePeriods(const RopeRule& rule) {
  std::vector<float> periods;
  for (int64_t i = 0; i < rule.rotary_dim; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(rule.rotary_dim);
    periods.push_back(static_cast<float>(std::pow(rule.theta, double{exponent})));
  }
  return periods;
}

float Llama3(const RopeRule& rule, float inv) {
  const float wavelength = static_cast<float>(2 * std::numbers::pi) / inv;
  if (wavelength < rule.original_positions / rule.high_freq_factor) return inv;
  const float slowed = inv / static_cast<float>(rule.factor);
  if (wavelength > rule.original_positions / rule.low_freq_factor) return slowed;
  const float keep = static_cast<float>(
      (static_cast<float>(rule.original_positions) / wavelength - rule.low_freq_factor) /
      (rule.high_freq_factor - rule.low_freq_factor));
  return (1 - keep) * slowed + keep * inv;
}

// The dimension whose wave turns `rotations` times within the original context.
double YarnDimension(const RopeRule& rule, double rotations) {
  return rule.rotary_dim * std::log(rule.original_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rule.theta));
}

void ApplyYarn(const RopeRule& rule, const std::vector<float>& periods, std::vector<float>& inv) {
  double low = YarnDimension(rule, rule.beta_fast);
  double high = YarnDimension(rule, rule.beta_slow);
  if (rule.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, rule.rotary_dim - 1.0);
  if (low == high) high += 0.001;  // a step instead of a division by zero
  for (size_t i = 0; i < inv.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1 - ramp;
    const float slowed = 1.0f / (static_cast<float>(rule.factor) * periods[i]);
    inv[i] = slowed * (1 - keep) + inv[i] * keep;
  }
}

float YarnAttentionScale(const RopeRule& rule) {
  if (rule.attention_factor) return static_cast<float>(*rule.attention_factor);
  const auto scale = [&](double mscale) {
    return rule.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(rule.factor) + 1.0;
  };
  if (rule.mscale != 0 && rule.mscale_all_dim != 0) {
    return static_cast<float>(scale(rule.mscale) / scale(rule.mscale_all_dim));
  }
  return static_cast<float>(scale(1));
}

float LongRopeAttentionScale(const RopeRule& rule) {
  if (rule.attention_factor) return static_cast<float>(*rule.attention_factor);
  const double stretch = rule.max_positions / rule.original_positions;
  if (stretch <= 1) return 1;
  return static_cast<float>(std::sqrt(1 + std::log(stretch) / std::log(rule.original_positions)));
}

}  // namespace

Rope MakeRope(const RopeRule& rule) {
  using Kind = RopeRule::Kind;
  const std::vector<float> periods = BasePeriods(rule);
  Rope rope;
  for (const float period : periods) rope.inv_freq.push_back(1.0f / period);
  if (rule.kind == Kind::kLinear) {
    for (float& inv : rope.inv_freq) inv /= static_cast<float>(rule.factor);
  } else if (rule.kind == Kind::kLlama3) {
    for (float& inv : rope.inv_freq) inv = Llama3(rule, inv);
  } else if (rule.kind == Kind::kYarn) {
    ApplyYarn(rule, periods, rope.inv_freq);
    rope.attention_scale = YarnAttentionScale(rule);
  } else if (rule.kind == Kind::kLongRope) {
    // One choice for every sequence, by the context served: cached keys must keep their angles.
    const auto& factors =
        rule.max_positions > rule.original_positions ? rule.long_factor : rule.short_factor;
    for (size_t i = 0; i < periods.size(); ++i) {
      rope.inv_freq[i] = 1.0f / (static_cast<float>(factors[i]) * periods[i]);
    }
    rope.attention_scale = LongRopeAttentionScale(rule);
  }
  return rope;
}

}  // namespace babai
