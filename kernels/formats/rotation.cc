#include "kernels/formats/rotation.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace babai {
namespace {

constexpr int64_t kLargestBlock = 128;  // RotationBlock's choice; any power of two works

uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// sign(i) / sqrt(block): the transform's two scalings at once. Rounded alike by R and R'.
template <class T>
T SignedScale(const Rotation& r, int64_t i) {
  const T scale = T{1} / std::sqrt(static_cast<T>(r.block));
  return (SplitMix64(r.seed + static_cast<uint64_t>(i)) & 1) != 0 ? -scale : scale;
}

// One level of the fast Walsh-Hadamard transform: pairs `half` apart, the constant known to the
// compiler, which turns the inner loop into vector instructions.
template <int64_t kHalf, class T>
void Level(T* x, int64_t block) {
  for (int64_t begin = 0; begin < block; begin += 2 * kHalf) {
    T* a = x + begin;
    T* b = a + kHalf;
    for (int64_t i = 0; i < kHalf; ++i) {
      const T sum = a[i] + b[i], difference = a[i] - b[i];
      a[i] = sum;
      b[i] = difference;
    }
  }
}

template <class T>
void WideLevels(T* x, int64_t block) {
  for (int64_t half = 16; half < block; half *= 2) {
    for (int64_t begin = 0; begin < block; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; i += 16) {
        T* a = x + i;
        T* b = a + half;
        for (int64_t j = 0; j < 16; ++j) {
          const T sum = a[j] + b[j], difference = a[j] - b[j];
          a[j] = sum;
          b[j] = difference;
        }
      }
    }
  }
}

// x becomes H_block x.
template <class T>
void HadamardBlock(T* x, int64_t block) {
  Level<1>(x, block);
  if (block > 2) Level<2>(x, block);
  if (block > 4) Level<4>(x, block);
  if (block > 8) Level<8>(x, block);
  WideLevels(x, block);
}

template <class T>
void HadamardBlocks(T* x, int64_t dimension, int64_t block) {
  for (int64_t begin = 0; begin < dimension; begin += block) HadamardBlock(x + begin, block);
}

template <class T>
std::vector<T> SignedScales(const Rotation& r, int64_t dimension) {
  std::vector<T> scales(dimension);
  for (int64_t i = 0; i < dimension; ++i) scales[i] = SignedScale<T>(r, i);
  return scales;
}

template <class T>
void RotateRows(const Rotation& r, T* rows, int64_t count, int64_t dimension, bool back) {
  const std::vector<T> scales = SignedScales<T>(r, dimension);
  for (T* x = rows; x < rows + count * dimension; x += dimension) {
    if (back) HadamardBlocks(x, dimension, r.block);
    for (int64_t i = 0; i < dimension; ++i) x[i] *= scales[i];
    if (!back) HadamardBlocks(x, dimension, r.block);
  }
}

// H_block over `width` neighbouring columns of a block's rows, which lie `stride` apart.
template <class T>
void HadamardOfRows(T* m, int64_t block, int64_t stride, int64_t width) {
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t begin = 0; begin < block; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        T* __restrict a = m + i * stride;
        T* __restrict b = a + half * stride;
        for (int64_t c = 0; c < width; ++c) {
          const T sum = a[c] + b[c], difference = a[c] - b[c];
          a[c] = sum;
          b[c] = difference;
        }
      }
    }
  }
}

// Rows of `width` values, `stride` apart, each times its scale.
template <class T>
void ScaleRows(const T* scales, int64_t rows, T* m, int64_t stride, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    T* row = m + i * stride;
    for (int64_t c = 0; c < width; ++c) row[c] *= scales[i];
  }
}

template <class T>
void RotateMatrixColumns(const Rotation& r, T* m, int64_t dimension, int64_t count, bool back) {
  constexpr int64_t kPanel = 64;  // columns whose block of rows stays in the cache
  const std::vector<T> scales = SignedScales<T>(r, dimension);
  for (int64_t begin = 0; begin < dimension; begin += r.block) {
    for (int64_t c = 0; c < count; c += kPanel) {
      T* panel = m + begin * count + c;
      const int64_t width = std::min(kPanel, count - c);
      if (!back) ScaleRows(&scales[begin], r.block, panel, count, width);
      HadamardOfRows(panel, r.block, count, width);
      if (back) ScaleRows(&scales[begin], r.block, panel, count, width);
    }
  }
}

}  // namespace

bool RotationFits(const Rotation& r, int64_t dimension) {
  return r.block >= 1 && (r.block & (r.block - 1)) == 0 && dimension >= 0 &&
         dimension % r.block == 0;
}

int64_t RotationBlock(int64_t dimension) {
  int64_t block = 1;
  while (block < kLargestBlock && dimension % (2 * block) == 0) block *= 2;
  return block;
}

void Rotate(const Rotation& r, float* rows, int64_t count, int64_t dimension) {
  if (!r.identity()) RotateRows(r, rows, count, dimension, /*back=*/false);
}

void RotateBack(const Rotation& r, float* rows, int64_t count, int64_t dimension) {
  if (!r.identity()) RotateRows(r, rows, count, dimension, /*back=*/true);
}

std::vector<float> RotationScales(const Rotation& r, int64_t dimension) {
  return SignedScales<float>(r, dimension);
}

void Hadamard(float* x, int64_t dimension, int64_t block) { HadamardBlocks(x, dimension, block); }

void RotateColumns(const Rotation& r, float* m, int64_t dimension, int64_t count) {
  if (!r.identity()) RotateMatrixColumns(r, m, dimension, count, /*back=*/false);
}

void RotateColumnsBack(const Rotation& r, float* m, int64_t dimension, int64_t count) {
  if (!r.identity()) RotateMatrixColumns(r, m, dimension, count, /*back=*/true);
}

void RotateMetric(const Rotation& r, double* h, int64_t dimension) {
  if (r.identity()) return;
  RotateRows(r, h, dimension, dimension, /*back=*/false);
  RotateMatrixColumns(r, h, dimension, dimension, /*back=*/false);
}

}  // namespace babai
