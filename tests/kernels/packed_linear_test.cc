#include "kernels/formats/packed_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/formats/float16.h"
#include "tests/kernels/formats_fixtures.h"

namespace babai {
namespace {

using testing::HasSubstr;

PackedInt RandomInt(int64_t rows, int64_t cols) {
  return *PackInt(RandomCodes(rows * cols, 4, 1), RandomHalves(rows, 0.01f, 0.1f, 2), {}, rows,
                  cols, cols, 4);
}

TEST(SparseRowsTest, AddsItsValues) {
  const SparseRows s = RandomSparseRows(5, 70, 9, 1);
  const auto view = MakeSparseRowsView(s.row_begin, s.columns, s.values, 5, 70);
  ASSERT_TRUE(view.ok()) << view.status();
  std::vector<float> out(3 * 70, 1.0f);
  AddRows(*view, 2, 5, out.data());
  int64_t touched = 0;
  for (uint32_t i = s.row_begin[2]; i < s.row_begin[5]; ++i) {
    const int64_t row = i < s.row_begin[3] ? 0 : i < s.row_begin[4] ? 1 : 2;
    EXPECT_EQ(out[row * 70 + s.columns[i]], 1.0f + HalfToFloat(s.values[i]));
  }
  for (const float v : out) touched += v != 1.0f;
  EXPECT_GT(touched, 0);
  EXPECT_LE(touched, s.row_begin[5] - s.row_begin[2]);
  EXPECT_EQ(s.bytes(), 4 * 6 + 4 * static_cast<int64_t>(s.columns.size()));
}

TEST(SparseRowsTest, RefusesEveryLie) {
  const SparseRows good = RandomSparseRows(5, 70, 9, 1);
  const auto message = [&](auto change) {
    SparseRows bad = good;
    change(bad);
    const auto view =
        MakeSparseRowsView(bad.row_begin, bad.columns, bad.values, bad.rows, bad.cols);
    return std::string(view.status().message());
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_THAT(message([](auto& s) { s.rows = 0; }), HasSubstr("rows"));
  EXPECT_THAT(message([](auto& s) { s.rows = 6; }), HasSubstr("row_begin"));
  EXPECT_THAT(message([](auto& s) {
                s.rows = INT64_MAX;
                s.cols = 1;
              }),
              HasSubstr("large"));
  EXPECT_THAT(message([](auto& s) { s.cols = 65537; }), HasSubstr("65536"));
  EXPECT_THAT(message([](auto& s) { s.row_begin[0] = 1; }), HasSubstr("from 0"));
  EXPECT_THAT(message([](auto& s) { s.row_begin.back()++; }), HasSubstr("entries"));
  EXPECT_THAT(message([](auto& s) { s.row_begin[2] = 0xffffffff; }), HasSubstr("row 1"));
  EXPECT_THAT(message([](auto& s) { s.row_begin[2] = 0; }), HasSubstr("row 1"));
  EXPECT_THAT(message([](auto& s) { s.columns[0] = 70; }), HasSubstr("row 0"));
  EXPECT_THAT(message([](auto& s) { s.columns[1] = s.columns[0]; }), HasSubstr("row 0"));
  EXPECT_THAT(message([](auto& s) { s.values[4] = 0x7c00; }), HasSubstr("number 4"));
  EXPECT_THAT(message([](auto& s) { s.values.pop_back(); }), HasSubstr("values"));
}

// W = R_out' (B + S) C R_in, worked out with plain matrices in fp64.
void ExpectIsItsDefinition(const PackedLinear& w) {
  const int64_t rows = w.rows(), cols = w.cols();
  std::vector<float> base(rows * cols), got(rows * cols), inner(rows * cols);
  PackedLinear bare;
  bare.base = w.base;
  ASSERT_TRUE(DecodeWeight(bare.view(), base.data()).ok());
  ASSERT_TRUE(DecodeWeight(w.view(), got.data()).ok());
  if (w.sparse) AddRows(w.sparse->view(), 0, rows, base.data());
  for (int64_t i = 0; i < rows * cols && !w.col_scales.empty(); ++i) {
    base[i] *= HalfToFloat(w.col_scales[i % cols]);
  }
  ASSERT_TRUE(DecodeRows(w.view(), 0, rows, inner.data()).ok());
  EXPECT_EQ(inner, base);
  // Columns of R are the turned unit vectors.
  std::vector<float> in(cols * cols), out(rows * rows);
  for (int64_t i = 0; i < cols; ++i) in[i * cols + i] = 1;
  for (int64_t i = 0; i < rows; ++i) out[i * rows + i] = 1;
  Rotate(w.in, in.data(), cols, cols);    // in[i][j] = R_in(j, i)
  Rotate(w.out, out.data(), rows, rows);  // out[i][j] = R_out(j, i)
  double worst = 0, largest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> left(cols);
    for (int64_t k = 0; k < rows; ++k) {
      for (int64_t c = 0; c < cols; ++c) left[c] += double{out[r * rows + k]} * base[k * cols + c];
    }
    for (int64_t c = 0; c < cols; ++c) {
      double want = 0;
      for (int64_t k = 0; k < cols; ++k) want += left[k] * in[c * cols + k];
      worst = std::max(worst, std::abs(want - got[r * cols + c]));
      largest = std::max(largest, std::abs(want));
    }
  }
  EXPECT_LE(worst, 1e-5 * largest);
}

TEST(PackedLinearTest, IsItsDefinitionForEveryBase) {
  constexpr int64_t rows = 72, cols = 96;
  for (int base = 0; base < 3; ++base) {
    PackedLinear w;
    if (base == 0) w.base = RandomInt(rows, cols);
    if (base == 1) w.base = RandomPackedTable(rows, cols, 32, 3, TableKind::kShared, 1);
    if (base == 2) w.base = RandomEntropyCoded(rows, cols, 2, 0.5, 1);
    ExpectIsItsDefinition(w);
    w.sparse = RandomSparseRows(rows, cols, 50, 3);
    ExpectIsItsDefinition(w);
    if (base != 2) w.col_scales = RandomHalves(cols, 0.5f, 2, 4);
    ExpectIsItsDefinition(w);
    w.in = {32, 7};
    ExpectIsItsDefinition(w);
    w.out = {8, 9};
    ExpectIsItsDefinition(w);
  }
}

TEST(PackedLinearTest, CountsEveryByte) {
  PackedLinear w;
  w.base = RandomInt(8, 64);
  EXPECT_EQ(w.bytes(), 8 * 32 + 8 * 2);
  w.sparse = RandomSparseRows(8, 64, 20, 1);
  w.col_scales = RandomHalves(64, 1, 2, 1);
  w.in = {64, 1};
  EXPECT_EQ(w.bytes(), 8 * 32 + 8 * 2 + w.sparse->bytes() + 128 + 16);
  w.base = RandomPackedTable(8, 64, 0, 2, TableKind::kBinary, 1);
  EXPECT_EQ(w.bytes(), 8 * 16 + 8 * 3 * 2 + w.sparse->bytes() + 128 + 16);
}

TEST(PackedLinearTest, RefusesPartsThatDoNotFit) {
  PackedLinear good;
  good.base = RandomInt(8, 96);
  good.sparse = RandomSparseRows(8, 96, 20, 1);
  good.col_scales = RandomHalves(96, 1, 2, 1);
  good.in = {32, 1};
  good.out = {8, 1};
  const auto message = [&](auto change) {
    PackedLinear bad = good;
    change(bad);
    return std::string(MakePackedLinearView(bad.view()).status().message());
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_THAT(message([](auto& w) { w.sparse = RandomSparseRows(8, 95, 20, 1); }),
              HasSubstr("sparse"));
  EXPECT_THAT(message([](auto& w) { w.col_scales.pop_back(); }), HasSubstr("col_scales"));
  EXPECT_THAT(message([](auto& w) { w.col_scales[5] = 0x7c01; }), HasSubstr("number 5"));
  EXPECT_THAT(message([](auto& w) { w.base = RandomEntropyCoded(8, 96, 1, 0, 1); }),
              HasSubstr("twice"));
  for (const int64_t block : {0, -1, 3, 64, 96}) {
    EXPECT_THAT(message([&](auto& w) { w.in.block = block; }), HasSubstr("rotation"));
  }
  EXPECT_THAT(message([&](auto& w) { w.out.block = 16; }), HasSubstr("rotation"));
}

}  // namespace
}  // namespace babai
