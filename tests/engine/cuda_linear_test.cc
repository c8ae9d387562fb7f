// Every stored format on the device against the product with the weight it stands for. On an
// emulated device (tests/kernels/cuda/emulated/simt.h) too, which has no cuBLAS: without those that
// are dense there, and tables of many tokens.
#include "server/engine/cuda_linear.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/engine/linear_layout.h"
#include "tests/engine/every_kind.h"
#include "tests/kernels/cuda/device.h"
#include "tests/kernels/cuda/values.h"
#include "tests/store/temp_dir.h"

namespace babai {
namespace {

using cuda::Dtype;

class CudaLinearTest : public cuda::GpuTest {
 protected:
  static constexpr int kSomeTokens = 21, kMostTokens = kTablePassTokens + 1;

  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    auto stream = cuda::Stream::Make();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
    auto limits = cuda::GetDeviceLimits(0);
    ASSERT_TRUE(limits.ok()) << limits.status();
    gemms_.limits = *limits;
    if (auto dense = cuda::DenseGemm::Make(stream_); dense.ok()) gemms_.dense = *std::move(dense);
    gemms_.packed_workspace =
        *cuda::Buffer::Of<uint8_t>(std::vector<uint8_t>(PackedGemmWorkspaceBytes(*limits), 0xff));
    // Room for 64 of the rows: a matrix is decoded in two parts.
    gemms_.scratch.decoded = *cuda::Buffer::OnDevice((64 + 1) * kCols * 2);
    linears_ = EveryKind();
    // Steps so small that 16 bits have no room for x times these; scales of rows are ones.
    linears_["tiny_steps"].base = linears_["coded"].base;
    auto& tiny = std::get<EntropyCoded>(linears_["tiny_steps"].base);
    for (uint16_t& scale : tiny.row_scales) scale = FloatToHalf(1);
    for (uint16_t& scale : tiny.col_scales) scale = FloatToHalf(HalfToFloat(scale) * 0x1p-13f);
    linears_["int4_sparse"].base = AnyInt(4, 32, true);
    linears_["int4_sparse"].sparse = RandomSparseRows(kRows, kCols, 40, 11);
    WriteLinears(linears_, Normal(kRows * kCols, 1), temp_.path() / "staging",
                 temp_.path() / "model");
    auto model = PackedModel::Open(temp_.path() / "model");
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  bool Runs(const std::string& name, int m) const {
    const CudaGemmNeeds needs = PlanCudaLinear(*model_, name)->needs;
    const bool dense = needs.decoded ? m > kTablePassTokens : needs.dense;
    return gemms_.dense != nullptr || !dense;
  }

  CudaLinear Load(const std::vector<std::string>& names, Dtype dtype) {
    auto loader = CudaLoader::Make(CudaLoader::kSmallPieceBytes);
    EXPECT_TRUE(loader.ok()) << loader.status();
    auto linear = CudaLinear::Load(*model_, names, dtype, **loader);
    EXPECT_TRUE(linear.ok()) << linear.status();
    EXPECT_TRUE((*loader)->Finish().ok());
    return *std::move(linear);
  }

  // y of all parts, as they lie. x [m, kCols] of dtype.
  std::vector<uint16_t> Apply(const CudaLinear& w, const std::vector<uint16_t>& x, Dtype dtype) {
    const int m = static_cast<int>(x.size() / w.cols());
    const CudaScratch::Needs needs = w.needs().scratch;
    // Numbers that would show, where nothing is written.
    const auto filled = [](int64_t bytes) {
      return *cuda::Buffer::Of<uint8_t>(std::vector<uint8_t>(bytes, 0xff));
    };
    gemms_.scratch.turned = filled(CudaScratch::TurnedBytes(needs, kMostTokens));
    gemms_.scratch.transposed = filled(CudaScratch::TransposedBytes(needs, kMostTokens));
    const cuda::DeviceVector<uint16_t> in(x), out(std::vector<uint16_t>(m * w.rows(), 0xffff));
    const cuda::Queue queue = {stream_.get(), gemms_.limits.major >= 9};
    const absl::Status run = w.Run(in.data(), m, out.data(), dtype, gemms_, queue, {});
    EXPECT_TRUE(run.ok()) << run;
    EXPECT_TRUE(stream_.Synchronize().ok());
    return out.ToHost();
  }

  std::map<std::string, PackedLinear> linears_;
  TempDir temp_;
  std::shared_ptr<const PackedModel> model_;
  cuda::Stream stream_;
  CudaGemms gemms_;
};

double Rms(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v * v;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

// Rounded to 16 bits: x as it is turned, y at most three times, a decoded weight; of a root mean
// square of 1/sqrt(3) half ulps each.
TEST_F(CudaLinearTest, EveryKindIsItsWeight) {
  for (const auto& [name, w] : linears_) {
    std::vector<float> weight(kRows * kCols);
    ASSERT_TRUE(DecodeWeight(w.view(), weight.data()).ok());
    for (const Dtype dtype : {Dtype::kFp16, Dtype::kBf16}) {
      const CudaLinear linear = Load({name}, dtype);
      for (const int m : {1, 2, 3, 9, kSomeTokens, kMostTokens}) {
        if (!Runs(name, m) || (m == kMostTokens && !linear.needs().decoded)) continue;
        const std::vector<uint16_t> x = cuda::Encoded(Normal(m * kCols, 8), dtype);
        const std::vector<uint16_t> y = Apply(linear, x, dtype);
        std::vector<double> want(m * kRows), off(m * kRows);
        double worst = 0;
        for (int i = 0; i < m * kRows; ++i) {
          for (int64_t c = 0; c < kCols; ++c) {
            want[i] += double{weight[i % kRows * kCols + c]} *
                       cuda::Decode(x[i / kRows * kCols + c], dtype);
          }
          off[i] = cuda::Decode(y[i], dtype) - want[i];
          worst = std::max(worst, std::abs(off[i]));
        }
        const double ulp = cuda::HalfUlp(dtype) * Rms(want);
        const std::string what = absl::StrCat(name, " m ", m, " dtype ", static_cast<int>(dtype));
        EXPECT_LT(Rms(off), 2 * ulp) << what;
        EXPECT_LT(worst, 12 * ulp) << what;
      }
    }
  }
}

// Parts of different kinds, with inputs prepared differently; equal ones are one product.
TEST_F(CudaLinearTest, StacksPartsOfDifferentKinds) {
  const std::vector<std::string> stacks[] = {
      {"int4", "int4_full", "int4_sparse"},
      {"coded_full", "int4_full", "int4_full", "int4"},
      {"coded", "odd_full", "int4_sparse", "int4", "int4_sparse", "wide"},
      {"row", "row", "binary", "thirds", "row_full", "int4", "row_full"},
  };
  constexpr int kTokens = 6;
  const std::vector<uint16_t> x = cuda::Encoded(Normal(kTokens * kCols, 10), Dtype::kFp16);
  for (const auto& names : stacks) {
    const CudaLinear stack = Load(names, Dtype::kFp16);
    ASSERT_EQ(stack.rows(), static_cast<int64_t>(names.size()) * kRows);
    EXPECT_FALSE(stack.takes_ends());
    const std::vector<uint16_t> y = Apply(stack, x, Dtype::kFp16);
    for (size_t i = 0; i < names.size(); ++i) {
      const std::vector<uint16_t> alone = Apply(Load({names[i]}, Dtype::kFp16), x, Dtype::kFp16);
      const cuda::RowsOf rows = stack.Output(y.data(), kTokens, static_cast<int64_t>(i) * kRows);
      for (int t = 0; t < kTokens; ++t) {
        const auto* row = static_cast<const uint16_t*>(rows.data) + t * rows.stride;
        for (int r = 0; r < kRows; ++r) {
          // The order of sums depends on how many rows a product has.
          const float want = cuda::Decode(alone[t * kRows + r], Dtype::kFp16);
          ASSERT_NEAR(cuda::Decode(row[r], Dtype::kFp16), want, 0x1p-9 * (1 + std::abs(want)))
              << names[i] << " token " << t << " row " << r;
        }
      }
    }
  }
  const CudaLinear sparse = Load({"int4", "int4_sparse", "int4_sparse"}, Dtype::kFp16);
  EXPECT_EQ(sparse.Output(nullptr, 1, 0).stride, 3 * kRows);
}

TEST_F(CudaLinearTest, OnlyAnUnevenGroupIsDense) {
  for (const auto& [name, w] : linears_) {
    const CudaGemmNeeds needs = PlanCudaLinear(*model_, name)->needs;
    EXPECT_EQ(needs.decoded, LayoutOf(w.view())->dense && name != "uneven") << name;
    EXPECT_EQ(needs.dense, needs.decoded || name == "uneven") << name;
  }
}

TEST_F(CudaLinearTest, TakesTheBytesThatArePlanned) {
  for (const auto& [name, w] : linears_) {
    const CudaLinearPlan plan = *PlanCudaLinear(*model_, name);
    const CudaLinear linear = Load({name}, Dtype::kFp16);
    EXPECT_EQ(plan.needs.dense, linear.needs().dense);
    EXPECT_EQ(plan.needs.scratch.turned_cols, linear.needs().scratch.turned_cols) << name;
    if (std::holds_alternative<EntropyCoded>(w.base)) {
      EXPECT_NEAR(plan.bytes, linear.bytes(), 0.15 * linear.bytes()) << name;
    } else {
      EXPECT_EQ(plan.bytes, linear.bytes()) << name;
      EXPECT_EQ(plan.needs.scratch.transposed_cols, linear.needs().scratch.transposed_cols) << name;
    }
  }
}

}  // namespace
}  // namespace babai
