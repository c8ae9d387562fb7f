// Grids as the tiles of a solver see them: for each grid a maker of its tile (tile.h), in memory
// that the caller lends, and the way from a tile's codes back to those that are stored.
#pragma once

#include <cstdint>
#include <vector>

#include "server/quant/grid.h"
#include "server/quant/tile.h"
#include "server/quant/tile_loop.h"

namespace babai {

// Cuts arrays of whole cache lines out of one allocation. Without memory it only counts.
class Carver {
 public:
  explicit Carver(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  T* Take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return memory_ != nullptr ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* memory_;
  int64_t used_ = 0;
};

// Lanes of a tile that are copies: lane i of the copy is lane first + i / copies of the original.
struct LaneCopies {
  int64_t first = 0;
  int64_t copies = 1;
};

// to [count, lanes] = the copies of from [count, lanes].
template <typename V>
void SpreadLanes(const V* from, int64_t count, int64_t lanes, LaneCopies copies, V* to) {
  for (int64_t x = 0; x < count; ++x) {
    const V* source = from + x * lanes + copies.first;
    for (int64_t i = 0; i < lanes; ++i) to[x * lanes + i] = source[i / copies.copies];
  }
}

// A maker has:  Tile, the type it makes;  Reserve, which cuts a tile's arrays;  Load, which fills
// them for the given rows (lanes without a row get harmless values);  Spread;  Stored, the stored
// code for a code of the tile.
template <typename T>
class UniformTiles {
 public:
  using Tile = UniformTile<T>;
  struct Space {
    T *scales, *zeros;
  };
  explicit UniformTiles(const UniformGrid& grid);
  explicit UniformTiles(const UnboundedGrid& grid);
  Space Reserve(Carver& carver) const;
  Tile Load(TileRows rows, const Space& space) const;
  Tile Spread(const Tile& tile, LaneCopies copies, const Space& space) const;
  int32_t Stored(int64_t, int32_t code) const { return code; }

 private:
  Tile In(const Space& space) const;
  const UniformGrid& grid_;
  T min_code_, max_code_;
};

template <typename T>
class TableTiles {
 public:
  using Tile = TableTile<T>;
  struct Space {
    T *scales, *levels, *middles;
  };
  explicit TableTiles(const TableGrid& grid);
  Space Reserve(Carver& carver) const;
  Tile Load(TileRows rows, const Space& space) const;
  Tile Spread(const Tile& tile, LaneCopies copies, const Space& space) const;
  int32_t Stored(int64_t row, int32_t code) const {
    return codes_.empty() ? code : codes_[row * count_ + code];
  }

 private:
  Tile In(const Space& space) const;
  const TableGrid& grid_;
  int32_t count_;
  int64_t groups_;              // of scales: one, 1, where rows have tables of their own
  std::vector<float> levels_;   // [rows or 1, count], ascending
  std::vector<uint8_t> codes_;  // [rows, count] the code of each level; empty: the same
};

template <typename T>
class IntegerTiles {
 public:
  using Tile = IntegerTile<T>;
  struct Space {
    int32_t* row_class;
  };
  explicit IntegerTiles(const IntegerGrid& grid);
  Space Reserve(Carver& carver) const { return {carver.Take<int32_t>(kLanes<T>)}; }
  Tile Load(TileRows rows, const Space& space) const;
  Tile Spread(const Tile& tile, LaneCopies copies, const Space& space) const;
  int32_t Stored(int64_t, int32_t code) const { return code; }

 private:
  Tile In(const Space& space) const;
  const IntegerGrid& grid_;
  std::vector<T> steps_, values_;
  std::vector<float> rates_;  // [contexts, kRateEntries], or empty
};

template <typename T, typename Grid>
struct TilesFor;
template <typename T>
struct TilesFor<T, UniformGrid> {
  using type = UniformTiles<T>;
};
template <typename T>
struct TilesFor<T, UnboundedGrid> {
  using type = UniformTiles<T>;
};
template <typename T>
struct TilesFor<T, TableGrid> {
  using type = TableTiles<T>;
};
template <typename T>
struct TilesFor<T, IntegerGrid> {
  using type = IntegerTiles<T>;
};

// The 2^bits levels of a row in ascending order, without scales, and the code of each.
void AscendingLevels(const TableGrid& grid, int64_t row, float* levels, uint8_t* codes);

}  // namespace babai
