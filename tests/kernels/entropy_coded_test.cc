#include "kernels/formats/entropy_coded.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kernels/formats_fixtures.h"

namespace babai {
namespace {

using testing::HasSubstr;

struct Source {
  int64_t rows, cols;
  double sigma, spread;
};

std::vector<int32_t> Draw(const Source& s) {
  return RandomIntegers(s.rows, s.cols, s.sigma, s.spread, 11);
}

absl::StatusOr<EntropyCoded> Encode(const std::vector<int32_t>& z, int64_t rows, int64_t cols) {
  return EncodeEntropy(z, RandomHalves(rows, 0.5f, 2, 1), RandomHalves(cols, 0.01f, 0.1f, 2), rows,
                       cols);
}

// Strip by strip through the free function, which needs nothing of its neighbours.
absl::StatusOr<std::vector<int32_t>> Decode(const EntropyCodedView& w) {
  std::vector<int32_t> z;
  for (int64_t strip = 0; strip * kEntropyStripRows < w.rows; ++strip) {
    std::vector<int32_t> rows(std::min(kEntropyStripRows, w.rows - strip * kEntropyStripRows) *
                              w.cols);
    if (absl::Status s = DecodeStrip(w, strip, rows.data()); !s.ok()) return s;
    z.insert(z.end(), rows.begin(), rows.end());
  }
  return z;
}

class EntropyCodedTest : public testing::TestWithParam<Source> {};

TEST_P(EntropyCodedTest, GivesBackEveryInteger) {
  const Source s = GetParam();
  const std::vector<int32_t> z = Draw(s);
  const auto coded = Encode(z, s.rows, s.cols);
  ASSERT_TRUE(coded.ok()) << coded.status();
  ASSERT_TRUE(MakeEntropyCodedView(coded->view()).ok());
  const auto back = Decode(coded->view());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, z);
  std::vector<float> weights(std::min(kEntropyStripRows, s.rows) * s.cols);
  ASSERT_TRUE(DecodeStripWeights(coded->view(), 0, weights.data()).ok());
  for (size_t i = 0; i < weights.size(); ++i) {
    const float scale =
        HalfToFloat(coded->row_scales[i / s.cols]) * HalfToFloat(coded->col_scales[i % s.cols]);
    ASSERT_EQ(weights[i], scale * static_cast<float>(z[i]));
  }
}

// A state keeps up to two bytes more or less than the average that the estimate counts.
TEST_P(EntropyCodedTest, TakesTheBytesThatWereForeseen) {
  const Source s = GetParam();
  const std::vector<int32_t> z = Draw(s);
  const EntropyModel model = FitEntropyModel(z, s.rows, s.cols);
  const int64_t foreseen = EntropyCodedBytes(model, z, s.rows, s.cols);
  const int64_t strips = (s.rows + kEntropyStripRows - 1) / kEntropyStripRows;
  const auto coded = Encode(z, s.rows, s.cols);
  EXPECT_NEAR(coded->bytes(), foreseen, 0.002 * foreseen + 8 * strips + 2);
  double bits = 0;
  for (int64_t i = 0; i < s.rows * s.cols; ++i) {
    bits += model.Bits(model.Context(i / s.cols, i % s.cols), z[i]);
  }
  EXPECT_NEAR(coded->stream.size(), bits / 8, 0.002 * bits / 8 + 20 * strips);
}

INSTANTIATE_TEST_SUITE_P(
    Sources, EntropyCodedTest,
    testing::Values(Source{1, 1, 1, 0}, Source{1, 7, 2, 0}, Source{3, 2, 2, 0.5},
                    Source{64, 64, 0, 0},           // nothing but zeros: no bits at all
                    Source{65, 33, 0.7, 0.5},       // a strip of one row
                    Source{130, 96, 1.5, 1},        //
                    Source{100, 61, 9, 0.3},        // escapes without raw low bits
                    Source{128, 200, 50, 2},        // several shifts
                    Source{66, 40, 9000, 2},        // up to the largest integer
                    Source{300, 128, 0.05, 0.2}));  // hardly anything but zeros

// Integers of extreme size, one in many zeros: the escape with every sign and shift.
TEST(EntropyCodedEdgesTest, RareHugeIntegers) {
  std::vector<int32_t> z(70 * 50);
  const int32_t rare[] = {32767, -32767, 31, -31, 30, -30, 32, -32, 1, -1};
  for (size_t i = 0; i < std::size(rare); ++i) z[i * 311] = rare[i];
  const auto coded = Encode(z, 70, 50);
  ASSERT_TRUE(coded.ok());
  EXPECT_EQ(*Decode(coded->view()), z);
  z[5] = 32768;
  EXPECT_THAT(Encode(z, 70, 50).status().message(), HasSubstr("32768"));
  z[5] = INT32_MIN;
  EXPECT_FALSE(Encode(z, 70, 50).ok());
}

// Rows and columns of different spread: classes must save what the source's own distribution
// allows, up to the tables, the classes and 0.015 bits for their coarseness.
TEST(EntropyModelTest, CostsNearTheSourceAndBelowThePooledEntropy) {
  const Source s = {640, 576, 0.9, 0.6};
  std::mt19937 rng(5);
  std::normal_distribution<double> normal;
  std::vector<double> by_row(s.rows), by_col(s.cols);
  for (double& v : by_row) v = std::exp2(0.3 * normal(rng));
  for (double& v : by_col) v = std::exp2(0.9 * normal(rng));
  std::vector<int32_t> z;
  double source_bits = 0;
  for (int64_t i = 0; i < s.rows * s.cols; ++i) {
    const double sigma = s.sigma * by_row[i / s.cols] * by_col[i % s.cols];
    const double v = std::abs(std::round(sigma * normal(rng)));
    z.push_back(static_cast<int32_t>(rng() % 2 ? v : -v));
    const double p =
        0.5 * (std::erfc((v - 0.5) / (sigma * M_SQRT2)) - std::erfc((v + 0.5) / (sigma * M_SQRT2)));
    source_bits -= std::log2(p);
  }
  const double weights = static_cast<double>(z.size());
  const auto coded = Encode(z, s.rows, s.cols);
  const double stream = 8.0 * coded->stream.size() / weights;
  const double with_model = stream + 8.0 * coded->model.size() / weights;
  EXPECT_LT(stream, source_bits / weights + 0.015);
  EXPECT_LT(with_model, source_bits / weights + 0.03);
  EXPECT_LT(with_model, EmpiricalEntropy(z) - 0.15);
}

// Equal rows and columns: one table, and next to nothing above the empirical entropy.
TEST(EntropyModelTest, OneContextWhereNothingVaries) {
  const std::vector<int32_t> z = RandomIntegers(512, 256, 1, 0, 3);
  const EntropyModel model = FitEntropyModel(z, 512, 256);
  EXPECT_EQ(model.contexts, 1);
  const auto coded = Encode(z, 512, 256);
  EXPECT_LT(coded->model.size(), 64u);
  // Eight strips of four states, each of which wastes 24 bits.
  EXPECT_LT(8.0 * coded->stream.size() / z.size(),
            EmpiricalEntropy(z) + 8 * 4 * 24.0 / z.size() + 0.002);
}

TEST(EntropyModelTest, SymbolsWithoutAFrequencyStillHaveACost) {
  const std::vector<int32_t> z(64 * 64);
  const EntropyModel model = FitEntropyModel(z, 64, 64);
  EXPECT_EQ(model.Bits(0, 0), 0.0f);
  EXPECT_EQ(model.Bits(0, 1), 13.0f);
  EXPECT_EQ(model.Bits(0, 1000), 29.0f);
}

TEST(EmpiricalEntropyTest, CountsFrequencies) {
  EXPECT_EQ(EmpiricalEntropy({}), 0.0);
  EXPECT_EQ(EmpiricalEntropy({7, 7, 7}), 0.0);
  EXPECT_DOUBLE_EQ(EmpiricalEntropy({1, -1, 5, 100000}), 2.0);
  EXPECT_DOUBLE_EQ(EmpiricalEntropy({0, 0, 1, 2}), 1.5);
}

TEST(EntropyCodedViewTest, RefusesEveryLie) {
  const EntropyCoded good = RandomEntropyCoded(70, 48, 2, 0.5, 1);
  const auto message = [&](auto change) {
    EntropyCoded bad = good;
    change(bad);
    const absl::Status made = MakeEntropyCodedView(bad.view()).status();
    EXPECT_EQ(EntropyDecoder::Make(bad.view()).status(), made);
    return std::string(made.message());
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_THAT(message([](auto& w) { w.rows = 0; }), HasSubstr("rows"));
  EXPECT_THAT(message([](auto& w) { w.rows = w.cols = 65537; }), HasSubstr("large"));
  EXPECT_THAT(message([](auto& w) { w.rows = 71; }), HasSubstr("row_scales"));
  EXPECT_THAT(message([](auto& w) { w.cols = 49; }), HasSubstr("col_scales"));
  EXPECT_THAT(message([](auto& w) { w.row_scales[3] = 0x7e01; }), HasSubstr("number 3"));
  EXPECT_THAT(message([](auto& w) { w.col_scales[4] = 0xfc00; }), HasSubstr("number 4"));
  EXPECT_THAT(message([](auto& w) { w.strip_begin.pop_back(); }), HasSubstr("strip_begin"));
  EXPECT_THAT(message([](auto& w) { w.strip_begin[0] = 2; }), HasSubstr("strip_begin"));
  EXPECT_THAT(message([](auto& w) { w.strip_begin[1] = 0xfffffffe; }), HasSubstr("strip 1"));
  EXPECT_THAT(message([](auto& w) { w.strip_begin[1] = 2; }), HasSubstr("strip 0"));
  EXPECT_THAT(message([](auto& w) { w.strip_begin[1] += 1; }), HasSubstr("strip 0"));
  EXPECT_THAT(message([](auto& w) { w.stream.pop_back(); }), HasSubstr("stream"));
  EXPECT_THAT(message([](auto& w) { w.model.clear(); }), HasSubstr("early"));
  EXPECT_THAT(message([](auto& w) { w.model[0] = 33; }), HasSubstr("contexts"));
  EXPECT_THAT(message([](auto& w) { w.model[0] = 0; }), HasSubstr("contexts"));
  EXPECT_THAT(message([](auto& w) { w.model[1] = 0x80; }), HasSubstr("repeats"));
  EXPECT_THAT(message([](auto& w) { w.model[1] = 11; }), HasSubstr("shift"));
  EXPECT_THAT(message([](auto& w) { w.model[2] = 61; }), HasSubstr("beyond"));
  EXPECT_THAT(message([](auto& w) { w.model[4] ^= 1; }), HasSubstr("4096"));
  EXPECT_THAT(message([](auto& w) { w.model.push_back(0); }), HasSubstr("left over"));
}

// Any byte of a small file changed in several ways, or missing: refused or decoded, never a crash
// or an access beyond a buffer (every buffer here ends where its heap block ends).
TEST(EntropyCodedViewTest, SurvivesAnyDamage) {
  const EntropyCoded good = RandomEntropyCoded(66, 40, 3, 1.2, 1);
  const std::vector<int32_t> integers = *Decode(good.view());
  int refused = 0, decoded_otherwise = 0;
  const auto decodes = [&](const EntropyCoded& bad) {
    const auto view = MakeEntropyCodedView(bad.view());
    const auto z = view.ok() ? Decode(*view) : view.status();
    if (view.ok() && !z.ok()) {
      EXPECT_EQ(z.status().code(), absl::StatusCode::kDataLoss);
    }
    refused += !z.ok();
    decoded_otherwise += z.ok() && *z != integers;
    return z.ok();
  };
  const uint8_t flips[] = {0x01, 0x80, 0xff, 0x10};
  for (size_t i = 0; i < good.model.size(); ++i) {
    for (const uint8_t flip : flips) {
      EntropyCoded bad = good;
      bad.model[i] ^= flip;
      decodes(bad);
    }
    EntropyCoded bad = good;
    bad.model.resize(i);
    EXPECT_FALSE(decodes(bad));
  }
  for (size_t i = 0; i < good.stream.size(); ++i) {
    EntropyCoded bad = good;
    bad.stream[i] ^= flips[i % 4];
    decodes(bad);
  }
  for (size_t cut = 2; cut < good.stream.size(); cut += 2) {
    EntropyCoded bad = good;
    bad.stream.resize(good.stream.size() - cut);
    bad.strip_begin.back() -= static_cast<uint32_t>(cut);
    EXPECT_FALSE(decodes(bad));
  }
  // Final states and lengths give damage away, unless it hit the raw low bits of an integer.
  EXPECT_GT(refused, 10 * decoded_otherwise);
}

}  // namespace
}  // namespace babai
