#include "server/quant/fit_input.h"

#include "server/reason/reason.h"

namespace babai {

void FitInput::LoadLanes(TileRows part, int64_t lanes, float* weights, float* counts) const {
  LoadTile(w.data(), cols, part, lanes, weights);
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t at = (part.first + i) * cols + c;
      const bool out = kept != nullptr && i < part.count && (*kept)[at] != 0;
      counts[c * lanes + i] = out ? 0 : importance[c];
      if (out) weights[c * lanes + i] = 0;
    }
  }
}

std::vector<float> MeanOne(absl::Span<const double> costs, int64_t cols) {
  double sum = 0;
  for (double x : costs) sum += x;
  if (!(sum > 0)) return std::vector<float>(cols, 1.0f);
  std::vector<float> out(cols);
  for (int64_t c = 0; c < cols; ++c)
    out[c] = static_cast<float>(costs[c] / sum * static_cast<double>(cols));
  return out;
}

absl::Status WeightsTooLarge() {
  return Refuse(absl::StatusCode::kInvalidArgument, reason::kUnsupportedFormat, "",
                "a group's weights are so large that its scale exceeds 65504, the largest fp16");
}

}  // namespace babai
