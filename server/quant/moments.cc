#include <algorithm>
#include <bit>
#include <cmath>

#include "server/quant/layer.h"
#include "server/quant/linalg.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

// The sum of kGramTokens squares below this still fits in fp32.
constexpr float kLargestInput = 1e17f;

// Compares bit patterns: without their sign, infinities and NaNs are the largest of all.
bool AllBelow(const float* x, int64_t count, float limit) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu);
  }
  return largest < std::bit_cast<uint32_t>(limit);
}

}  // namespace

struct Moments::State {
  int64_t k = 0;
  int64_t tokens = 0;
  std::vector<double> gram;  // lower triangle of sum x x'
};

Moments::Moments(int64_t k) : state_(std::make_unique<State>()) {
  state_->k = k;
  state_->gram.assign(static_cast<size_t>(k) * k, 0.0);
}
Moments::~Moments() = default;
Moments::Moments(Moments&&) noexcept = default;

absl::Status Moments::Add(const float* x, int64_t tokens) {
  if (!AllBelow(x, tokens * state_->k, kLargestInput)) {
    return Refuse(
        absl::StatusCode::kFailedPrecondition, reason::kCalibrationNonFinite, "",
        "an input of the layer is not a number, infinite or above 1e17 on the calibration "
        "data: the model overflows on it; use other data or a wider dense type");
  }
  const absl::Status added = linalg::AddGram(x, tokens, state_->k, state_->gram.data());
  if (added.ok()) state_->tokens += tokens;
  return added;
}

int64_t Moments::k() const { return state_->k; }
int64_t Moments::tokens() const { return state_->tokens; }

std::vector<double> Moments::Hessian() const {
  const int64_t k = state_->k;
  const double scale = state_->tokens > 0 ? 1.0 / static_cast<double>(state_->tokens) : 0.0;
  std::vector<double> h(state_->gram.size());
  for (int64_t r = 0; r < k; ++r) {
    for (int64_t c = 0; c <= r; ++c) h[r * k + c] = h[c * k + r] = state_->gram[r * k + c] * scale;
  }
  return h;
}

}  // namespace babai
