#include "server/quant/scale_fit.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "kernels/formats/float16.h"
#include "server/quant/fit_input.h"
#include "server/quant/tile.h"
#include "server/quant/tile_loop.h"
#include "server/reason/reason.h"

namespace babai {
namespace {

constexpr int64_t kFitLanes = kLanes<float>;
constexpr float kLargestHalf = 65504;

// Fractions of the full range, in steps finer than the error's dependence on them. Below a third,
// clipping costs more than the finer step gains even at two bits. Beyond the whole: what a sweep
// rounds is a weight plus the errors of earlier columns, which no longer keeps to the weights'
// range.
std::vector<float> Shrinks(ScaleFit fit) {
  if (fit == ScaleFit::kAbsMax) return {1.0f};
  std::vector<float> shrinks;
  for (int percent = 130; percent >= 30; percent -= 2) {
    shrinks.push_back(static_cast<float>(percent) / 100);
  }
  return shrinks;
}

// Writes the lanes' parameters of one group; false if a scale does not fit fp16.
bool StoreGroup(const float* scales, const float* zeros, TileRows rows, int64_t g,
                UniformGrid& grid) {
  for (int64_t i = 0; i < rows.count; ++i) {
    if (!(scales[i] <= kLargestHalf)) return false;
    const int64_t at = (rows.first + i) * grid.groups() + g;
    grid.scales[at] = FloatToHalf(scales[i]);
    grid.zeros[at] = static_cast<uint8_t>(zeros[i]);
  }
  return true;
}

}  // namespace

absl::StatusOr<UniformGrid> FitScales(absl::Span<const float> w, int64_t rows, int64_t cols,
                                      const ScaleFitOptions& options, ThreadPool& pool,
                                      const std::function<bool()>& stop) {
  const std::vector<float> shrinks = Shrinks(options.fit);
  const std::vector<float> importance = MeanOne(options.importance, cols);
  UniformGrid grid = {options.bits, options.symmetric, rows, cols, std::min(options.group, cols)};
  grid.scales.resize(rows * grid.groups());
  grid.zeros.resize(rows * grid.groups());
  FitTile tile = {
      .columns = grid.group,
      .max_code = static_cast<float>(grid.max_code()),
      .symmetric = options.symmetric,
      .shrinks = shrinks.data(),
      .candidates = static_cast<int64_t>(shrinks.size()),
      // Which end of a range should be clipped is worth a try; two codes further gains nothing.
      .zero_reach = options.symmetric ? 0.0f : 1.0f};
  const auto fit = FitOpsForCpu().scales;
  std::atomic<bool> finite = true, fits = true;
  const auto work = [&](TileRows part, uint8_t* scratch) {
    const float* first = w.data() + part.first * cols;
    if (!std::all_of(first, first + part.count * cols, [](float x) { return std::isfinite(x); }))
      finite = false;
    float* weights = reinterpret_cast<float*>(scratch);
    LoadTile(w.data(), cols, part, kFitLanes, weights);
    for (int64_t g = 0; g < grid.groups() && finite && fits; ++g) {
      alignas(64) float scales[kFitLanes], zeros[kFitLanes];
      FitTile group = tile;
      group.weights = weights + g * grid.group * kFitLanes;
      group.importance = importance.data() + g * grid.group;
      fit(group, scales, zeros);
      if (!StoreGroup(scales, zeros, part, g, grid)) fits = false;
    }
  };
  const int64_t scratch_bytes = cols * kFitLanes * static_cast<int64_t>(sizeof(float));
  if (absl::Status s = ForEachTile(rows, kFitLanes, scratch_bytes, pool, stop, work); !s.ok())
    return s;
  if (!finite) {
    return Refuse(absl::StatusCode::kInvalidArgument, reason::kNonFiniteWeights, "",
                  "a weight is not a number or infinite");
  }
  if (!fits) return WeightsTooLarge();
  return grid;
}

}  // namespace babai
