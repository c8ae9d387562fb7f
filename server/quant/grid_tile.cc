#include "server/quant/grid_tile.h"

#include <algorithm>
#include <numeric>

#include "kernels/formats/float16.h"

namespace babai {
namespace {

// Codes beyond which fp32 has no integers anyway.
constexpr float kFarAway = 1 << 30;

static_assert(kLargestInteger == kEntropyLargest);

// values[g * lanes + i] = of(row of lane i, g); `spare` for lanes without a row.
template <typename T, typename Of>
void FillLanes(TileRows rows, int64_t groups, T spare, T* values, const Of& of) {
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      values[g * kLanes<T> + i] = i < rows.count ? static_cast<T>(of(rows.first + i, g)) : spare;
    }
  }
}

// What TableValues gives, for a group of any scale: the table itself where rows share one.
void UnsortedLevels(const TableGrid& grid, int64_t row, float* levels) {
  if (grid.kind == TableKind::kShared) {
    for (int i = 0; i < 1 << grid.bits; ++i) levels[i] = HalfToFloat(grid.table[i]);
    return;
  }
  const PackedTableView view = {{},        grid.scales, grid.table, grid.rows,
                                grid.cols, grid.group,  grid.bits,  grid.kind};
  TableValues(view, row, 0, levels);
}

}  // namespace

void AscendingLevels(const TableGrid& grid, int64_t row, float* levels, uint8_t* codes) {
  const int count = 1 << grid.bits;
  std::vector<float> by_code(count);
  UnsortedLevels(grid, row, by_code.data());
  std::iota(codes, codes + count, uint8_t{0});
  std::stable_sort(codes, codes + count,
                   [&](uint8_t a, uint8_t b) { return by_code[a] < by_code[b]; });
  for (int i = 0; i < count; ++i) levels[i] = by_code[codes[i]];
}

// ---- uniform

template <typename T>
UniformTiles<T>::UniformTiles(const UniformGrid& grid)
    : grid_(grid), min_code_(0), max_code_(static_cast<T>(grid.max_code())) {}

template <typename T>
UniformTiles<T>::UniformTiles(const UnboundedGrid& grid)
    : grid_(grid), min_code_(-kFarAway), max_code_(kFarAway) {}

template <typename T>
typename UniformTiles<T>::Space UniformTiles<T>::Reserve(Carver& carver) const {
  const int64_t count = grid_.groups() * kLanes<T>;
  T* scales = carver.Take<T>(count);
  return {scales, carver.Take<T>(count)};
}

template <typename T>
UniformTile<T> UniformTiles<T>::In(const Space& space) const {
  return {space.scales, space.zeros, grid_.group, min_code_, max_code_};
}

template <typename T>
UniformTile<T> UniformTiles<T>::Load(TileRows rows, const Space& space) const {
  const int64_t groups = grid_.groups();
  FillLanes(rows, groups, T{1}, space.scales,
            [&](int64_t row, int64_t g) { return HalfToFloat(grid_.scales[row * groups + g]); });
  FillLanes(rows, groups, T{0}, space.zeros,
            [&](int64_t row, int64_t g) { return grid_.zeros[row * groups + g]; });
  return In(space);
}

template <typename T>
UniformTile<T> UniformTiles<T>::Spread(const Tile& tile, LaneCopies copies,
                                       const Space& space) const {
  SpreadLanes(tile.scales, grid_.groups(), kLanes<T>, copies, space.scales);
  SpreadLanes(tile.zeros, grid_.groups(), kLanes<T>, copies, space.zeros);
  return In(space);
}

// ---- table

template <typename T>
TableTiles<T>::TableTiles(const TableGrid& grid)
    : grid_(grid),
      count_(1 << grid.bits),
      groups_(grid.kind == TableKind::kShared ? grid.groups() : 1) {
  const int64_t rows = grid.kind == TableKind::kShared ? 1 : grid.rows;
  levels_.resize(rows * count_);
  codes_.resize(rows * count_);
  for (int64_t row = 0; row < rows; ++row) {
    AscendingLevels(grid, row, levels_.data() + row * count_, codes_.data() + row * count_);
  }
  if (grid.kind == TableKind::kShared) codes_.clear();
}

template <typename T>
typename TableTiles<T>::Space TableTiles<T>::Reserve(Carver& carver) const {
  T* scales = carver.Take<T>(groups_ * kLanes<T>);
  T* levels = carver.Take<T>(count_ * kLanes<T>);
  return {scales, levels, carver.Take<T>((count_ + 1) * kLanes<T>)};
}

template <typename T>
TableTile<T> TableTiles<T>::In(const Space& space) const {
  const int64_t group = grid_.kind == TableKind::kShared ? grid_.group : grid_.cols;
  return {space.scales, space.levels, space.middles, group, count_};
}

template <typename T>
TableTile<T> TableTiles<T>::Load(TileRows rows, const Space& space) const {
  const bool shared = grid_.kind == TableKind::kShared;
  FillLanes(rows, groups_, T{1}, space.scales, [&](int64_t row, int64_t g) {
    return shared ? HalfToFloat(grid_.scales[row * groups_ + g]) : 1.0f;
  });
  const auto level = [&](int64_t row, int64_t i) {
    return levels_[(shared ? 0 : row) * count_ + i];
  };
  FillLanes(rows, count_, T{0}, space.levels, level);
  FillLanes(rows, count_ + 1, T{0}, space.middles, [&](int64_t row, int64_t i) -> T {
    const T first = level(row, std::clamp<int64_t>(i - 1, 0, count_ - 2));
    const T second = level(row, std::clamp<int64_t>(i, 1, count_ - 1));
    const T half_gap = (second - first) / 2;
    return i == 0 ? first - half_gap : i == count_ ? second + half_gap : first + half_gap;
  });
  return In(space);
}

template <typename T>
TableTile<T> TableTiles<T>::Spread(const Tile& tile, LaneCopies copies, const Space& space) const {
  SpreadLanes(tile.scales, groups_, kLanes<T>, copies, space.scales);
  SpreadLanes(tile.levels, count_, kLanes<T>, copies, space.levels);
  SpreadLanes(tile.middles, count_ + 1, kLanes<T>, copies, space.middles);
  return In(space);
}

// ---- integers

template <typename T>
IntegerTiles<T>::IntegerTiles(const IntegerGrid& grid)
    : grid_(grid),
      steps_(grid.steps.begin(), grid.steps.end()),
      values_(grid.values.begin(), grid.values.end()) {
  if (grid.model == nullptr || !(grid.rate_weight > 0)) return;
  for (int context = 0; context < grid.model->contexts; ++context) {
    for (int32_t z = -kRateReach; z <= kRateReach; ++z) {
      rates_.push_back(static_cast<float>(grid.rate_weight * grid.model->Bits(context, z)));
    }
  }
}

template <typename T>
IntegerTile<T> IntegerTiles<T>::In(const Space& space) const {
  IntegerTile<T> tile = {steps_.data(), values_.data()};
  if (rates_.empty()) return tile;
  tile.rates = rates_.data();
  tile.row_class = space.row_class;
  tile.col_class = grid_.model->col_class.data();
  tile.contexts = grid_.model->contexts;
  return tile;
}

template <typename T>
IntegerTile<T> IntegerTiles<T>::Load(TileRows rows, const Space& space) const {
  for (int64_t i = 0; i < kLanes<T> && !rates_.empty(); ++i) {
    space.row_class[i] = i < rows.count ? grid_.model->row_class[rows.first + i] : 0;
  }
  return In(space);
}

template <typename T>
IntegerTile<T> IntegerTiles<T>::Spread(const Tile& tile, LaneCopies copies,
                                       const Space& space) const {
  if (!rates_.empty()) SpreadLanes(tile.row_class, 1, kLanes<T>, copies, space.row_class);
  return In(space);
}

template class UniformTiles<float>;
template class UniformTiles<double>;
template class TableTiles<float>;
template class TableTiles<double>;
template class IntegerTiles<float>;
template class IntegerTiles<double>;

}  // namespace babai
