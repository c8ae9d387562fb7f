// Every stored format, executed, against the product with the weight it stands for.
#include "server/engine/linear.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/input_file.h"
#include "server/model/safetensors.h"
#include "server/reason/reason.h"
#include "server/store/file.h"
#include "tests/engine/every_kind.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();

class LinearTest : public testing::Test {
 protected:
  void Write(const std::map<std::string, PackedLinear>& linears) {
    const std::vector<float> dense = Normal(kRows * kCols, 1);
    WriteLinears(linears, dense, temp_.path() / "staging", dir());
    auto model = PackedModel::Open(dir());
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  std::filesystem::path dir() const { return temp_.path() / "model"; }

  Linear Load(const std::vector<std::string>& names) {
    auto linear = Linear::Make(*model_, names);
    EXPECT_TRUE(linear.ok()) << linear.status();
    return *std::move(linear);
  }

  // Rows of x and y stand further apart than they need; what is between stays.
  std::vector<float> Apply(const Linear& w, const std::vector<float>& x, Numerics numerics) {
    const int64_t k = w.cols(), n = w.rows(), m = x.size() / k, ldx = k + 3, ldy = n + 5;
    std::vector<float> wide_x(m * ldx, std::nanf("")), wide_y(m * ldy, std::nanf(""));
    for (int64_t t = 0; t < m; ++t) std::copy_n(&x[t * k], k, &wide_x[t * ldx]);
    cpu::AlignedBuffer scratch(LinearScratchBytes(m, k));
    w.Apply({wide_x.data(), m, ldx, nullptr, wide_y.data(), ldy, scratch.data()}, numerics, pool_);
    std::vector<float> y(m * n);
    for (int64_t t = 0; t < m; ++t) {
      std::copy_n(&wide_y[t * ldy], n, &y[t * n]);
      for (int64_t i = n; i < ldy; ++i) EXPECT_TRUE(std::isnan(wide_y[t * ldy + i]));
    }
    return y;
  }

  TempDir temp_;
  std::shared_ptr<const PackedModel> model_;
  ThreadPool pool_{2};
};

// What a token's outputs may differ by: an output of the inner product by the rounding of its sum,
// in any order, and of the inputs' transform; in serving, by half a step of the int8 activations,
// whose steps are a 127th of the largest of 32. R_out' then mixes up to out.block of them.
std::vector<double> Tolerance(const PackedLinear& w, const std::vector<float>& token,
                              Numerics numerics) {
  std::vector<float> inner(kRows * kCols), x = token;
  EXPECT_TRUE(DecodeRows(w.view(), 0, kRows, inner.data()).ok());
  Rotate(w.in, x.data(), 1, kCols);
  std::vector<double> factors(kCols, 1);
  const auto* coded = std::get_if<EntropyCoded>(&w.base);
  for (int64_t c = 0; c < kCols; ++c) {
    if (coded != nullptr) factors[c] = HalfToFloat(coded->col_scales[c]);
    if (!w.col_scales.empty()) factors[c] = HalfToFloat(w.col_scales[c]);
    if (factors[c] == 0) factors[c] = 1;
  }
  const bool dense = LayoutOf(w.view())->dense;
  double x_norm = 0;
  for (const float v : x) x_norm += v * v;
  std::vector<double> bounds(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    double norm = 0, int8 = 0;
    for (int64_t g = 0; g < kCols; g += 32) {
      double sum = 0, largest = 0;
      for (int64_t c = g; c < g + 32; ++c) {
        norm += double{inner[r * kCols + c]} * inner[r * kCols + c];
        sum += std::abs(inner[r * kCols + c] / factors[c]);
        largest = std::max(largest, std::abs(factors[c] * x[c]));
      }
      int8 += sum * largest / 254;
    }
    bounds[r] = std::sqrt(norm * x_norm) * (kEps * (kCols + 16) + (dense ? 0x1p-11 : 0));
    if (numerics == Numerics::kServing && !dense) bounds[r] += int8;
  }
  std::vector<double> mixed(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    const auto first = bounds.begin() + r / w.out.block * w.out.block;
    mixed[r] = *std::max_element(first, first + w.out.block) *
               std::sqrt(static_cast<double>(w.out.block)) * 1.001;
  }
  return mixed;
}

TEST_F(LinearTest, EveryKindIsItsWeight) {
  const auto linears = EveryKind();
  Write(linears);
  for (const auto& [name, w] : linears) {
    const Linear linear = Load({name});
    std::vector<float> weight(kRows * kCols);
    ASSERT_TRUE(DecodeWeight(w.view(), weight.data()).ok());
    for (const int64_t m : {1, 3, 21}) {
      const std::vector<float> x = Normal(m * kCols, 8);
      for (const Numerics numerics : {Numerics::kReference, Numerics::kServing}) {
        const std::vector<float> y = Apply(linear, x, numerics);
        for (int64_t t = 0; t < m; ++t) {
          const std::vector<float> token(&x[t * kCols], &x[t * kCols] + kCols);
          const std::vector<double> tolerance = Tolerance(w, token, numerics);
          for (int64_t r = 0; r < kRows; ++r) {
            double want = 0;
            for (int64_t c = 0; c < kCols; ++c) want += double{weight[r * kCols + c]} * token[c];
            ASSERT_NEAR(y[t * kRows + r], want, tolerance[r]) << name << " m " << m << " r " << r;
          }
        }
      }
    }
  }
}

TEST_F(LinearTest, ATokenDoesNotDependOnItsBatch) {
  const auto linears = EveryKind();
  Write(linears);
  for (const auto& [name, w] : linears) {
    const Linear linear = Load({name});
    const std::vector<float> x = Normal(19 * kCols, 9);
    for (const Numerics numerics : {Numerics::kReference, Numerics::kServing}) {
      const std::vector<float> together = Apply(linear, x, numerics);
      for (const int64_t m : {1, 4, 5, 9}) {
        const std::vector<float> some(x.end() - m * kCols, x.end());
        const std::vector<float> y = Apply(linear, some, numerics);
        ASSERT_TRUE(std::equal(y.begin(), y.end(), together.end() - m * kRows)) << name << m;
      }
    }
  }
}

// Parts of different kinds, with inputs prepared differently, in every order that matters.
TEST_F(LinearTest, StacksPartsOfDifferentKinds) {
  auto linears = EveryKind();
  linears["int4_twin"] = linears["int4_full"];
  Write(linears);
  const std::vector<std::string> stacks[] = {
      {"int4", "int4_full", "dense"},
      {"coded_full", "int4_full", "int4_twin", "int4"},
      {"row_full", "coded", "odd_full", "coded", "wide"},
  };
  const std::vector<float> x = Normal(6 * kCols, 10);
  for (const auto& names : stacks) {
    const Linear stack = Load(names);
    ASSERT_EQ(stack.rows(), static_cast<int64_t>(names.size()) * kRows);
    for (const Numerics numerics : {Numerics::kReference, Numerics::kServing}) {
      const std::vector<float> y = Apply(stack, x, numerics);
      for (size_t i = 0; i < names.size(); ++i) {
        const std::vector<float> alone = Apply(Load({names[i]}), x, numerics);
        for (int64_t t = 0; t < 6; ++t) {
          ASSERT_TRUE(std::equal(&alone[t * kRows], &alone[t * kRows] + kRows,
                                 &y[t * stack.rows() + i * kRows]))
              << names[i];
        }
      }
    }
  }
}

TEST_F(LinearTest, ChoosesTheLayoutThatTheHeaderPromises) {
  const auto linears = EveryKind();
  const auto layout = [&](const char* name) { return *LayoutOf(linears.at(name).view()); };
  for (const char* name : {"row", "binary", "thirds", "uneven", "row_full"}) {
    EXPECT_TRUE(layout(name).dense) << name;
  }
  EXPECT_EQ(layout("int3").bits, 3);
  EXPECT_FALSE(layout("int4").symmetric);
  EXPECT_EQ(layout("odd").bits, 4);
  EXPECT_EQ(layout("power").bits, 8);  // 8 eighths do not fit 4 bits
  EXPECT_EQ(layout("coded").bits, 4);
  EXPECT_EQ(layout("wide").bits, 8);
  EXPECT_EQ(layout("int4_full").sparse_entries, linears.at("int4_full").sparse->view().entries());
}

// A scale so small that fp16 can not take the unit up, or a table of zeros: dense, and right.
TEST_F(LinearTest, TablesWhoseScalesWouldLoseBitsStayDense) {
  PackedTable w = TableOf({-1, -0.5f, 0.5f, 1}, 2, 32);
  w.scales[5] = 0x0003;  // 3 * 2^-24, a subnormal: half of it does not exist
  EXPECT_TRUE(LayoutOf({.base = w.view()})->dense);
  w.scales[5] = 0x0002;
  EXPECT_FALSE(LayoutOf({.base = w.view()})->dense);
  EXPECT_TRUE(LayoutOf({.base = TableOf({0, 0, 0, 0}, 2, 32).view()})->dense);
}

TEST_F(LinearTest, TakesTheBytesThatArePlanned) {
  const auto linears = EveryKind();
  Write(linears);
  for (const auto& [name, w] : linears) {
    const int64_t planned = *LinearBytes(*model_, name), taken = Load({name}).bytes();
    if (std::holds_alternative<EntropyCoded>(w.base)) {
      // Escapes are counted as far too large, and rare integers as one in 4096.
      EXPECT_NEAR(planned, taken, 0.1 * taken) << name;
    } else {
      EXPECT_EQ(planned, taken) << name;
    }
  }
  EXPECT_EQ(*LinearBytes(*model_, "dense"), Load({"dense"}).bytes());
}

TEST_F(LinearTest, AStreamThatDoesNotDecodeIsDataLoss) {
  Write(EveryKind());
  const auto file = *InputFile::Open(dir(), "rest.safetensors");
  auto bytes = *ReadFile(dir() / "rest.safetensors", 1 << 24);
  const auto header = ReadSafetensorsHeader(file, 0);
  for (const StoredTensor& t : *header) {
    if (t.name == "coded.stream") bytes[t.offset + 3] ^= 0x20;
  }
  WriteText(dir() / "rest.safetensors", bytes);
  const auto damaged = *PackedModel::Open(dir(), /*verify=*/false);
  const absl::Status status = Linear::Make(*damaged, {"coded"}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(ReasonOf(status), reason::kInvalidModelFile);
}

}  // namespace
}  // namespace babai
