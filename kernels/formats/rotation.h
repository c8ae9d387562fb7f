// Randomized block Hadamard transform: an orthogonal change of basis that spreads outliers evenly.
//
//   R = blockdiag(H_b / sqrt(b)) diag(signs),  H_b the Sylvester-Hadamard matrix of size b = block
//   signs[i] = +1 or -1: bit 0 of SplitMix64(seed + i), 1 means -1
//
// R is orthogonal: R' R = I. With W~ = R_out W R_in', a linear is  y = W x = R_out' (W~ (R_in x)).
// Sums of a block run in one fixed order, so a vector's result does not depend on its neighbours.
// Source: QuIP#, arXiv:2402.04396; QuaRot, arXiv:2404.00456. SplitMix64: Steele et al., OOPSLA
// 2014, doi:10.1145/2660193.2660195.
#pragma once

#include <cstdint>
#include <vector>

namespace babai {

struct Rotation {
  int64_t block = 1;  // a power of two that divides the dimension; 1 = no rotation (and no signs)
  uint64_t seed = 0;

  bool identity() const { return block == 1; }
  bool operator==(const Rotation& o) const {
    return block == o.block && (block == 1 || seed == o.seed);
  }
};

// Whether `r` can turn vectors of this dimension.
bool RotationFits(const Rotation& r, int64_t dimension);

// The largest power of two up to 128 that divides `dimension`, which may be 1.
int64_t RotationBlock(int64_t dimension);

// All below require RotationFits(r, dimension).

// rows [count, dimension], each row x becomes R x (or R' x). In place, fp32.
void Rotate(const Rotation& r, float* rows, int64_t count, int64_t dimension);
void RotateBack(const Rotation& r, float* rows, int64_t count, int64_t dimension);

// The two steps of Rotate(), for callers that rotate often: x[i] *= RotationScales()[i], then
// Hadamard(). RotateBack() takes them the other way round.
std::vector<float> RotationScales(const Rotation& r, int64_t dimension);  // signs / sqrt(block)
void Hadamard(float* x, int64_t dimension, int64_t block);                // x = blockdiag(H_b) x

// m [dimension, count] becomes R m (or R' m): the same for the columns of a row-major matrix.
void RotateColumns(const Rotation& r, float* m, int64_t dimension, int64_t count);
void RotateColumnsBack(const Rotation& r, float* m, int64_t dimension, int64_t count);

// h [dimension, dimension] becomes R h R'. In place, fp64.
void RotateMetric(const Rotation& r, double* h, int64_t dimension);

}  // namespace babai
