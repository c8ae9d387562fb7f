#include "kernels/formats/packed_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/formats/float16.h"
#include "tests/kernels/formats_fixtures.h"

namespace babai {
namespace {

using testing::HasSubstr;

struct Shape {
  int64_t rows, cols, group;
  int bits;
  TableKind kind;
};

// Scales of a row; kShared only.
int64_t GroupsOf(const Shape& s) {
  return s.kind != TableKind::kShared ? 0 : s.group >= s.cols ? 1 : s.cols / s.group;
}

class PackedTableTest : public testing::TestWithParam<Shape> {};

// The header's formulas, from what was packed.
TEST_P(PackedTableTest, DecodesWhatWasPacked) {
  const auto [rows, cols, group, bits, kind] = GetParam();
  const int64_t groups = GroupsOf(GetParam());
  const auto codes = RandomCodes(rows * cols, bits, 1);
  const auto scales = RandomHalves(rows * groups, 0.01f, 0.1f, 2);
  const auto table = RandomHalves(TableEntries(kind, rows, bits), -1, 1, 3);
  const auto packed = PackTable(codes, scales, table, rows, cols, group, bits, kind);
  ASSERT_TRUE(packed.ok()) << packed.status();
  std::vector<float> out((rows - rows / 2) * cols, -7);
  DecodeRows(packed->view(), rows / 2, rows, out.data());
  for (int64_t r = rows / 2; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int code = codes[r * cols + c];
      float want = 0;
      if (kind == TableKind::kShared) {
        want = HalfToFloat(scales[r * groups + c / group]) * HalfToFloat(table[code]);
      } else if (kind == TableKind::kRow) {
        want = HalfToFloat(table[(r << bits) + code]);
      } else {
        const uint16_t* row = &table[r * (1 + bits)];
        want = HalfToFloat(row[0]);
        for (int i = 0; i < bits; ++i) {
          want += (code >> i & 1 ? 1.0f : -1.0f) * HalfToFloat(row[1 + i]);
        }
      }
      ASSERT_EQ(out[(r - rows / 2) * cols + c], want) << r << " " << c;
    }
  }
}

TEST_P(PackedTableTest, CostsWhatTheHeaderSays) {
  const auto [rows, cols, group, bits, kind] = GetParam();
  const PackedTable w = RandomPackedTable(rows, cols, group, bits, kind, 1);
  const int64_t groups = GroupsOf(GetParam());
  EXPECT_EQ(static_cast<int64_t>(w.codes.size()), rows * ((cols * bits + 31) / 32 * 4));
  EXPECT_EQ(static_cast<int64_t>(w.scales.size()), rows * groups);
  const int64_t table = kind == TableKind::kShared ? 1 << bits
                        : kind == TableKind::kRow  ? rows << bits
                                                   : rows * (1 + bits);
  EXPECT_EQ(static_cast<int64_t>(w.table.size()), table);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, PackedTableTest,
    testing::Values(Shape{1, 1, 1, 2, TableKind::kShared}, Shape{4, 96, 32, 3, TableKind::kShared},
                    Shape{3, 37, 1000, 4, TableKind::kShared}, Shape{5, 33, 11, 2, TableKind::kRow},
                    Shape{2, 64, 0, 4, TableKind::kRow}, Shape{4, 100, 7, 3, TableKind::kBinary},
                    Shape{3, 31, 31, 4, TableKind::kBinary}));

TEST(PackedTableViewTest, RefusesWhatTheHeaderForbids) {
  const PackedTable w = RandomPackedTable(4, 96, 32, 3, TableKind::kShared, 1);
  const auto make = [&](PackedTable bad) {
    return MakePackedTableView(bad.codes, bad.scales, bad.table, bad.rows, bad.cols, bad.group,
                               bad.bits, bad.kind)
        .status();
  };
  const auto changed = [&](auto change) {
    PackedTable bad = w;
    change(bad);
    return std::string(make(bad).message());
  };
  EXPECT_TRUE(make(w).ok());
  EXPECT_THAT(changed([](auto& b) { b.rows = 0; }), HasSubstr("rows"));
  EXPECT_THAT(changed([](auto& b) { b.cols = -96; }), HasSubstr("cols"));
  EXPECT_THAT(changed([](auto& b) { b.bits = 8; }), HasSubstr("bits"));
  EXPECT_THAT(changed([](auto& b) { b.bits = 1; }), HasSubstr("bits"));
  EXPECT_THAT(changed([](auto& b) { b.group = 0; }), HasSubstr("group"));
  EXPECT_THAT(changed([](auto& b) { b.group = 36; }), HasSubstr("group"));
  EXPECT_THAT(changed([](auto& b) { b.rows = 5; }), HasSubstr("codes"));
  EXPECT_THAT(changed([](auto& b) { b.scales.pop_back(); }), HasSubstr("scales"));
  EXPECT_THAT(changed([](auto& b) { b.kind = TableKind::kRow; }), HasSubstr("scales"));
  EXPECT_THAT(changed([](auto& b) { b.table.push_back(0); }), HasSubstr("table"));
  EXPECT_THAT(changed([](auto& b) { b.scales[3] = 0x7e00; }), HasSubstr("scale number 3"));
  EXPECT_THAT(changed([](auto& b) { b.table[2] = 0xfc00; }), HasSubstr("table value number 2"));
  EXPECT_THAT(changed([](auto& b) { b.rows = b.cols = int64_t{1} << 33; }), HasSubstr("large"));
  EXPECT_EQ(TableEntries(TableKind::kRow, int64_t{1} << 60, 4), -1);
}

TEST(PackTableTest, RefusesCodesThatDoNotFit) {
  const std::vector<uint8_t> codes(32, 4);
  const std::vector<uint16_t> table(4);
  EXPECT_THAT(PackTable(codes, {}, table, 1, 32, 32, 2, TableKind::kRow).status().message(),
              HasSubstr("code 4"));
}

}  // namespace
}  // namespace babai
